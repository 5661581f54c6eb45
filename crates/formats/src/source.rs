//! Where the bytes of a checkpoint come from: a folder, or memory.

use crate::{FormatError, Result};
use std::collections::BTreeMap;
use tangor_tensor::{Bytes, MapGuard};

/// The files of one checkpoint.
///
/// File names are plain names inside the folder. Whoever implements this may rely on
/// [`check_file_name`] having been applied to every name that came out of a file.
pub trait Source {
    /// What to call the checkpoint in messages: the folder's or the file's name.
    fn name(&self) -> &str;

    /// Names of the regular files in the folder, in any order.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    fn list(&self) -> Result<Vec<String>>;

    /// A small file, copied to memory; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if it is longer than `limit` bytes,
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    fn read(&self, file: &str, limit: u64) -> Result<Option<Bytes>>;

    /// A file of weights, mapped rather than copied where that is possible; `None` if there is none
    /// of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), also for what is not a regular file.
    fn map(&self, file: &str) -> Result<Option<(Bytes, MapGuard)>>;
}

/// Files in memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    name: String,
    files: BTreeMap<String, Bytes>,
}

impl MemorySource {
    /// An empty folder called `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), files: BTreeMap::new() }
    }

    /// Adds a file, in place of the one that had its name.
    #[must_use]
    pub fn with(mut self, file: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        self.files.insert(file.into(), bytes.into());
        self
    }
}

impl Source for MemorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn read(&self, file: &str, limit: u64) -> Result<Option<Bytes>> {
        match self.files.get(file) {
            Some(bytes) if u64::try_from(bytes.len()).is_ok_and(|len| len <= limit) => {
                Ok(Some(bytes.clone()))
            }
            Some(bytes) => Err(FormatError::limit(file, "bytes of the file", bytes.len(), limit)),
            None => Ok(None),
        }
    }

    fn map(&self, file: &str) -> Result<Option<(Bytes, MapGuard)>> {
        Ok(self.files.get(file).map(|bytes| (bytes.clone(), MapGuard::default())))
    }
}

/// Refuses what is not a plain file name on every system: separators, `..`, a leading dot, drives
/// and alternate streams (`:`), control characters, names that Windows reserves or rewrites, and
/// more than 255 bytes. `subject` is the file that holds the name.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed).
pub fn check_file_name(subject: &str, name: &str) -> Result<()> {
    let refuse = |why: &str| {
        let message = format!("refers to the file {name:?}, which {why}");
        Err(FormatError::malformed(subject, message)
            .with_hint("a checkpoint may only refer to files in its own folder, by plain names"))
    };
    if name.is_empty() || name.len() > 255 {
        return Err(FormatError::malformed(
            subject,
            format!("refers to a file by a name of {} bytes (1 to 255 are allowed)", name.len()),
        ));
    }
    if name.starts_with('.') {
        return refuse("starts with a dot");
    }
    if name.ends_with(['.', ' ']) {
        return refuse("ends with a dot or a space");
    }
    if name.chars().any(|c| matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')) {
        return refuse("is not a plain name");
    }
    if name.chars().any(char::is_control) {
        return refuse("contains control characters");
    }
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_uppercase();
    let numbered = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
    let reserved = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered.is_some_and(|n| {
            matches!(n, "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³")
        });
    if reserved {
        return refuse("is reserved on Windows");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_leave_the_folder_or_mean_something_else_on_some_system() {
        for name in [
            "",
            "..",
            ".",
            "../a",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "C:a",
            "C:\\a",
            "\\\\server\\a",
            "\\\\?\\a",
            "a:stream",
            "nul",
            "NUL.txt",
            "aux .bin",
            "com1.onnx",
            "LPT9",
            "COM¹.bin",
            "a.",
            "a ",
            "a\0b",
            "a\nb",
            ".hidden",
            "con",
            "a|b",
            "a?b",
            "CONOUT$",
        ] {
            assert!(check_file_name("x.json", name).is_err(), "{name:?} must be refused");
        }
        assert!(check_file_name("x.json", &"a".repeat(256)).is_err());
    }

    #[test]
    fn accepts_the_names_that_checkpoints_use() {
        for name in [
            "model.onnx.data",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "nulla.bin",
            "SmolLM2-135M.Q4_1.gguf",
            "console.txt",
            "COM10.bin",
            "ünï.gguf",
            "a b.gguf",
        ] {
            assert!(check_file_name("x.json", name).is_ok(), "{name:?} must be accepted");
        }
        assert!(check_file_name("x.json", &"a".repeat(255)).is_ok());
    }
}
