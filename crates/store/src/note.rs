//! Notes: small texts that are dear to find out and can be found out again, kept under a key.
//!
//! ```text
//! root/notes/KEY.note   the digest of what follows, the key on one line, the text
//! ```
//! A note replaces the one before it in one step. One that is damaged, cut short or of another key
//! is as good as none.

use crate::digest::Sha256Digest;
use crate::{Result, Store, sys};
use std::io::Read;
use std::path::PathBuf;

/// Longest note that is read, in bytes.
const MOST: u64 = 1 << 20;
/// Folder of the notes, in the root.
const FOLDER: &str = "notes";

impl Store {
    /// The text that was kept under a key, if it is whole.
    #[must_use]
    pub fn find_note(&self, key: &str) -> Option<String> {
        let file = sys::open_regular(&self.note(key)).ok()?;
        let mut found = String::new();
        file.take(MOST).read_to_string(&mut found).ok()?;
        let (digest, body) = found.split_once('\n')?;
        let (of, text) = body.split_once('\n')?;
        let whole = digest == Sha256Digest::of(body.as_bytes()).to_string() && of == line(key);
        whole.then(|| text.to_owned())
    }

    /// Keeps a text under a key, in the place of what was there.
    ///
    /// # Errors
    /// [`Io`](crate::StoreError::Io), [`NoSpace`](crate::StoreError::NoSpace).
    pub fn keep_note(&self, key: &str, text: &str) -> Result<()> {
        let disk = &*self.options.disk;
        sys::create_dirs(disk, &self.root.join(FOLDER))?;
        let body = format!("{}\n{text}", line(key));
        let digest = Sha256Digest::of(body.as_bytes());
        sys::write_small(disk, &self.note(key), format!("{digest}\n{body}").as_bytes())
    }

    /// Every note's file.
    fn note(&self, key: &str) -> PathBuf {
        let name = Sha256Digest::of(key.as_bytes()).to_string();
        self.root.join(FOLDER).join(format!("{}.note", &name[..20]))
    }
}

/// A key on one line.
fn line(key: &str) -> String {
    key.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::StoreOptions;
    use std::fs;

    fn store(folder: &tempfile::TempDir) -> Store {
        let root = Some(folder.path().to_path_buf());
        Store::open(StoreOptions { root, ..StoreOptions::default() }).unwrap()
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        assert_eq!(store.find_note("rates of\ncpu"), None);
        for text in ["one\ntwo\n", ""] {
            store.keep_note("rates of\ncpu", text).unwrap();
            assert_eq!(store.find_note("rates of\ncpu").as_deref(), Some(text));
        }
        assert_eq!(store.find_note("rates of gpu"), None);
    }

    #[test]
    fn what_is_damaged_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        store.keep_note("key", "text").unwrap();
        let path = store.note("key");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(store.find_note("key"), None, "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(store.find_note("key"), None, "{at} bytes");
        }
        // What belongs to another key.
        store.keep_note("other", "text").unwrap();
        fs::copy(store.note("other"), &path).unwrap();
        assert_eq!(store.find_note("key"), None);
    }
}
