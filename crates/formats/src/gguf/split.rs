//! Models split over several GGUF files: `NAME-00001-of-00003.gguf` and so on.

use super::{Metadata, Part, TensorInfo};
use crate::{FormatError, Limits, Result};

/// The names of all the files of the set that `name` is part of, in order; `None` if it is not
/// named like a part.
pub(crate) fn split_set(name: &str, limits: &Limits) -> Result<Option<Vec<String>>> {
    let Some((prefix, number, count)) = split_name(name) else { return Ok(None) };
    if count > limits.shards {
        return Err(FormatError::limit(name, "files of a split model", count, limits.shards));
    }
    if number == 0 || number > count {
        return Err(FormatError::malformed(name, format!("is named part {number} of {count}")));
    }
    let name = |part| format!("{prefix}-{part:05}-of-{count:05}.gguf");
    Ok(Some((1..=count).map(name).collect()))
}

/// `("NAME", 1, 3)` of `NAME-00001-of-00003.gguf`.
fn split_name(name: &str) -> Option<(&str, usize, usize)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    Some((prefix, digits(number)?, digits(count)?))
}

/// The first file's metadata and the tensors of all files, after checking that the files say they
/// belong together.
pub(super) fn merge(
    parts: Vec<(&str, Part)>,
    limits: &Limits,
) -> Result<(Metadata, Vec<TensorInfo>)> {
    let count = parts.len();
    let mut merged: Option<(Metadata, Vec<TensorInfo>)> = None;
    for (index, (name, part)) in parts.into_iter().enumerate() {
        let says = |key: &str| part.metadata.opt_usize(key);
        let (number, of) = (says("split.no")?.unwrap_or(0), says("split.count")?.unwrap_or(0));
        if (number, of.max(1)) != (index, count) {
            let message = format!(
                "says it is part {} of {}, but was read as part {} of {count}",
                number.saturating_add(1),
                of.max(1),
                index.saturating_add(1),
            );
            return Err(FormatError::malformed(name, message).with_hint(
                "the files of a split model have to keep the names that they were given",
            ));
        }
        match &mut merged {
            None => merged = Some((part.metadata, part.tensors)),
            Some((_, tensors)) => tensors.extend(part.tensors),
        }
    }
    let (metadata, tensors) =
        merged.ok_or_else(|| FormatError::missing("model", "has no files"))?;
    let said = metadata.opt_usize("split.tensors.count")?;
    if let Some(said) = said.filter(|&said| count > 1 && said != tensors.len()) {
        let message = format!("should have {said} tensors in all its parts, not {}", tensors.len());
        return Err(FormatError::malformed(metadata.subject(), message));
    }
    if tensors.len() as u64 > limits.tensors {
        let (found, limit) = (tensors.len(), limits.tensors);
        return Err(FormatError::limit(metadata.subject(), "tensors", found, limit));
    }
    Ok((metadata, tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_other_files_of_a_set_from_any_of_them() {
        let limits = Limits::default();
        let set = split_set("a-b-00002-of-00003.gguf", &limits).unwrap().unwrap();
        assert_eq!(
            set,
            ["a-b-00001-of-00003.gguf", "a-b-00002-of-00003.gguf", "a-b-00003-of-00003.gguf"]
        );
        for single in ["a.gguf", "a-1-of-2.gguf", "a-00001-of-0000x.gguf", "a-00001-of-00002.bin"] {
            assert_eq!(split_set(single, &limits).unwrap(), None, "{single}");
        }
    }

    #[test]
    fn refuses_numbers_that_no_set_has() {
        let limits = Limits::default();
        for name in ["a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-00001-of-99999.gguf"] {
            assert!(split_set(name, &limits).is_err(), "{name}");
        }
    }
}
