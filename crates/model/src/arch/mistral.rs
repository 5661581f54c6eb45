//! Mistral 7B: Llama with a sliding attention window in every layer (v0.1) or none (v0.2, v0.3).

use super::{Arch, llama};
use crate::config::{Config, Keys};
use crate::error::ImportError;

pub(super) static ARCH: Arch = Arch { name: "mistral", config, graph: llama::graph };

fn config(keys: &Keys<'_>) -> Result<Config, ImportError> {
    let mut config = Config::common(keys)?;
    // The class's default, for files that do not mention the key; `null` turns the window off.
    let absent = (!keys.has("sliding_window")).then_some(4096);
    config.windows.fill(keys.optional_size("sliding_window")?.or(absent));
    Ok(config)
}
