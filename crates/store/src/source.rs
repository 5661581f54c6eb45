//! The files of one model on disk, as `tangor-formats` wants them.

use crate::{Result, StoreError, sys};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tangor_formats::tensor::{Bytes, MapGuard, map_file};
use tangor_formats::{FormatError, Source, check_file_name};

/// A model's file, with the other parts of it if it is split, or a model's folder.
///
/// Whatever the files say, nothing is opened but regular files of this one folder. A symbolic link
/// may not leave it, with two exceptions: the file that the user named is the file that is meant,
/// and the links of a Hugging Face cache may lead to the blobs of the same repository.
#[derive(Debug)]
pub struct DirSource {
    name: String,
    folder: PathBuf,
    /// Where links may lead to besides the folder.
    blobs: Option<PathBuf>,
    /// The file that was named, with the file that it stands for.
    only: Option<(String, PathBuf)>,
}

impl DirSource {
    /// The model at `path`: a file, or a folder.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotAModel`] for pipes, devices and the like,
    /// [`StoreError::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                StoreError::NotFound(path.to_path_buf())
            }
            _ => StoreError::io("open", path, error),
        };
        let no_model =
            |why: &str| StoreError::NotAModel { path: path.to_path_buf(), why: why.to_owned() };
        let target = fs::canonicalize(path).map_err(failed)?;
        let meta = fs::metadata(&target).map_err(failed)?;
        if meta.is_dir() {
            let name = file_name(&target).unwrap_or_else(|| path.display().to_string());
            let blobs = cache_blobs(&target);
            return Ok(Self { name, folder: target, blobs, only: None });
        }
        if !meta.is_file() {
            return Err(no_model("neither a regular file nor a folder"));
        }
        let name = file_name(path).ok_or_else(|| no_model("its name is not UTF-8"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        let blobs = cache_blobs(&folder);
        Ok(Self { name: name.clone(), folder, blobs, only: Some((name, target)) })
    }

    /// The file that was named, if it was not a folder.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.only.as_ref().map(|(name, _)| name.as_str())
    }

    /// Names and lengths of the files.
    pub(crate) fn lengths(&self) -> Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for name in self.list()? {
            if let Some(file) = self.regular(&name)? {
                let meta =
                    file.metadata().map_err(|error| FormatError::io(name.as_str(), error))?;
                files.push((name, meta.len()));
            }
        }
        Ok(files)
    }

    /// The path that `name` stands for, if it is a regular file that may be read.
    fn resolve(&self, name: &str) -> io::Result<PathBuf> {
        if let Some((only, target)) = &self.only
            && only == name
        {
            return Ok(target.clone());
        }
        let path = self.folder.join(name);
        if !fs::symlink_metadata(&path)?.is_symlink() {
            return Ok(path);
        }
        let target = fs::canonicalize(&path)?;
        let parent = target.parent();
        if parent != Some(&*self.folder)
            && (self.blobs.is_none() || parent != self.blobs.as_deref())
        {
            let why = "it is a link that leaves the model's folder";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(target)
    }

    fn regular(&self, name: &str) -> tangor_formats::Result<Option<File>> {
        if self.only.as_ref().is_none_or(|(only, _)| only != name) {
            check_file_name(&self.name, name)?;
        }
        match self.resolve(name).and_then(|path| sys::open_regular(&path)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FormatError::io(name, error)),
        }
    }
}

impl Source for DirSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self) -> tangor_formats::Result<Vec<String>> {
        let wanted = |name: &str| match &self.only {
            Some((only, _)) => only == name || part_of_same(only, name),
            None => check_file_name(&self.name, name).is_ok(),
        };
        let failed = |error| FormatError::io(self.name.as_str(), error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            let regular = |path: PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file());
            if wanted(&name) && self.resolve(&name).is_ok_and(regular) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, file: &str, limit: u64) -> tangor_formats::Result<Option<Bytes>> {
        let Some(opened) = self.regular(file)? else { return Ok(None) };
        let failed = |error| FormatError::io(file, error);
        let len = opened.metadata().map_err(failed)?.len();
        if len > limit {
            return Err(FormatError::limit(file, "bytes of the file", len, limit));
        }
        let mut bytes = Vec::new();
        opened.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes.into()))
    }

    fn map(&self, file: &str) -> tangor_formats::Result<Option<(Bytes, MapGuard)>> {
        let Some(opened) = self.regular(file)? else { return Ok(None) };
        map_file(&opened).map(Some).map_err(|error| FormatError::io(file, error))
    }
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Whether two files are parts of one split model: `x-00001-of-00003.gguf` and the like.
fn part_of_same(one: &str, other: &str) -> bool {
    split_name(one).is_some_and(|name| split_name(other) == Some(name))
}

/// What the parts of a split model have in common: the name before the number, and what comes
/// after it. `x-00001-of-00003.gguf` → `(x, 00003.gguf)`.
pub(crate) fn split_name(name: &str) -> Option<(&str, &str)> {
    let (head, tail) = name.rsplit_once("-of-")?;
    let (stem, number) = head.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|digit| digit.is_ascii_digit());
    let (count, _) = tail.split_once('.')?;
    (digits(number) && digits(count)).then_some((stem, tail))
}

/// The blobs that the links of a Hugging Face cache lead to:
/// `models--org--repo/snapshots/COMMIT/…` → `models--org--repo/blobs`.
fn cache_blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.ancestors().find(|path| path.ends_with("snapshots"))?;
    let repo = snapshots.parent()?;
    let named = repo.file_name()?.to_str()?.starts_with("models--");
    named.then(|| fs::canonicalize(repo.join("blobs")).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_model_belong_together() {
        assert!(part_of_same("m-00001-of-00003.gguf", "m-00002-of-00003.gguf"));
        for other in [
            "m.gguf",
            "n-00002-of-00003.gguf",
            "m-00002-of-00004.gguf",
            "m-2-of-00003.gguf",
            "m-00002-of-00003.bin",
        ] {
            assert!(!part_of_same("m-00001-of-00003.gguf", other), "{other}");
        }
        assert!(!part_of_same("m.gguf", "m.gguf"));
    }
}
