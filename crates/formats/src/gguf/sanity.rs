//! Dimensions that no model can have, refused where the file's name is still at hand.

use super::Gguf;
use crate::{FormatError, Limits, Result};

/// Checks the well-known keys of the file's architecture. Keys that are missing are the business of
/// whoever needs them; only `general.architecture` has to be there.
pub(super) fn check(gguf: &Gguf, limits: &Limits) -> Result<()> {
    let metadata = gguf.metadata();
    let arch = metadata.str("general.architecture")?;
    let key = |name: &str| format!("{arch}.{name}");
    let fail = |message: String| Err(FormatError::malformed(gguf.name(), message));

    for name in ["embedding_length", "feed_forward_length", "context_length", "vocab_size"] {
        let key = key(name);
        let zero = match metadata.get(&key) {
            Some(value) if value.elements().is_some() => false,
            _ => metadata.opt_usize(&key)? == Some(0),
        };
        if zero {
            return fail(format!("metadata {key:?} is 0"));
        }
    }
    if let Some(layers) = metadata.opt_usize(&key("block_count"))? {
        if layers == 0 {
            return fail(format!("metadata {:?} is 0", key("block_count")));
        }
        if layers > limits.layers {
            return Err(FormatError::limit(gguf.name(), "layers", layers, limits.layers));
        }
    }
    check_heads(gguf, &key("attention.head_count"), &key("attention.head_count_kv"))?;
    for name in ["rope.freq_base", "attention.layer_norm_rms_epsilon"] {
        let key = key(name);
        if let Some(value) = metadata.opt_f32(&key)?
            && (value < 0.0 || (name == "rope.freq_base" && value == 0.0))
        {
            return fail(format!("metadata {key:?} is {value}"));
        }
    }
    check_vocab(gguf, limits)
}

fn check_heads(gguf: &Gguf, heads_key: &str, kv_key: &str) -> Result<()> {
    let metadata = gguf.metadata();
    // Architectures whose layers differ store lists; those are checked by whoever reads them.
    let is_list = |key: &str| metadata.get(key).is_some_and(|value| value.elements().is_some());
    if is_list(heads_key) || is_list(kv_key) {
        return Ok(());
    }
    let (heads, kv) = (metadata.opt_usize(heads_key)?, metadata.opt_usize(kv_key)?);
    let bad = match (heads, kv) {
        (Some(0), _) | (_, Some(0)) => true,
        (Some(heads), Some(kv)) => !heads.is_multiple_of(kv),
        _ => false,
    };
    if bad {
        let (heads, kv) = (heads.unwrap_or(0), kv.unwrap_or(0));
        let message = format!("{heads} attention heads cannot share {kv} key-value heads");
        return Err(FormatError::malformed(gguf.name(), message));
    }
    Ok(())
}

fn check_vocab(gguf: &Gguf, limits: &Limits) -> Result<()> {
    let tokens = gguf.metadata().len_of("tokenizer.ggml.tokens");
    if tokens > limits.vocab {
        return Err(FormatError::limit(gguf.name(), "tokens", tokens, limits.vocab));
    }
    let rows = gguf.tensor_info("token_embd.weight").and_then(|info| info.dims().get(1).copied());
    if let Some(rows) = rows.filter(|&rows| tokens > 0 && rows != tokens) {
        let message = format!("has {tokens} tokens and embeddings for {rows}");
        return Err(FormatError::malformed(gguf.name(), message));
    }
    Ok(())
}
