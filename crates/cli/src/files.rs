//! Files of the user's that are written whole or not at all.

use crate::error::{Failure, Outcome};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Writes a file beside and moves it into its place: what was there before stays until the new
/// text is on the disk. A link stays one, and so do permissions.
///
/// # Errors
/// If it cannot be written; nothing is left behind then.
pub(crate) fn write_whole(path: &Path, text: &str) -> Outcome {
    try_write(path, text).map_err(|error| Failure::from(error).about(path.display()))
}

fn try_write(path: &Path, text: &str) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let before = fs::metadata(path).ok();
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        // A terminal or a pipe has no place to be moved into.
        return fs::write(path, text);
    }
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidFilename.into()) };
    let new = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let written = fs::File::create(&new).and_then(|mut file| {
        if let Some(before) = &before {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    if written.is_err() {
        // There may be none.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        for text in ["one", "two"] {
            write_whole(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["a.txt"]);
        assert!(write_whole(folder.path(), "three").is_err());
        assert!(write_whole(&folder.path().join("absent/a.txt"), "three").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_written_whole_leaves_what_was_there() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.txt"), folder.path().join("link"));
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("a.txt", &link).unwrap();
        // The file beside it has no room here.
        let beside = folder.path().join(format!(".a.txt.{}", std::process::id()));
        fs::create_dir(&beside).unwrap();
        assert!(write_whole(&link, "two").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        fs::remove_dir(&beside).unwrap();
        write_whole(&link, "two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
