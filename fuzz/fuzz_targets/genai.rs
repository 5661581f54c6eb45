//! A `genai_config.json` of any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tangor_formats::genai::{GenaiConfig, MAX_CONTEXT};
use tangor_formats::{Limits, check_file_name};

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let Ok(config) = GenaiConfig::parse(data, &limits) else { return };
    assert!((1..=MAX_CONTEXT).contains(&config.context_length));
    assert!((1..=limits.vocab).contains(&config.vocab_size));
    assert!(check_file_name("", &config.decoder.filename).is_ok());
    assert!(config.search.top_p.is_finite() && config.search.temperature.is_finite());
});
