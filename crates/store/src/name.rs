//! How models are named, and the only place where a name turns into a path of the store.

use crate::builtin::{self, BuiltIn};
use crate::{Result, StoreError};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use tangor_formats::check_file_name;

/// A model, as a user names it.
///
/// Parsed from, in this order:
/// * a path: `./x.gguf`, `../x`, `/x`, `~/x`, `C:\x`, anything that ends in `.gguf` and has no
///   colon, and anything with a separator that exists on disk;
/// * a built-in name, such as `smollm2`;
/// * `org/repo[:part][@revision]` of a model hub, where `part` is a file, a quantisation (`Q4_0`)
///   or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// A name that the program brings along.
    BuiltIn(&'static BuiltIn),
    /// A repository of a model hub, or part of one.
    Hub(HubName),
    /// A file or folder of the user.
    Path(PathBuf),
}

/// `org/repo[:part][@revision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `org/repo`.
    pub repo: String,
    /// File, quantisation or folder; the obvious one if absent.
    pub part: Option<String>,
    /// Branch, tag or commit; `main` if absent.
    pub revision: Option<String>,
}

impl ModelName {
    /// Reads a name. Looks at the disk only to tell the relative path `models/x` from a repository.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::UnknownName`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, |path| path.exists())
    }

    fn parse_with(text: &str, exists: impl Fn(&Path) -> bool) -> Result<Self> {
        let bad = |why: &str| StoreError::BadName { text: text.to_owned(), why: why.to_owned() };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > 4096 || text.contains(char::is_control) {
            return Err(bad("it is too long or contains control characters"));
        }
        if let Some(path) = explicit_path(text) {
            return Ok(Self::Path(path));
        }
        if let Some(built_in) = builtin::find(text) {
            return Ok(Self::BuiltIn(built_in));
        }
        if text.contains('/') && exists(Path::new(text)) {
            return Ok(Self::Path(text.into()));
        }
        if !text.contains(['/', ':', '@']) {
            return Err(StoreError::UnknownName(text.to_owned()));
        }
        HubName::parse(text).map(Self::Hub).map_err(|why| bad(&why))
    }

    /// Name of the model's folder in the store: readable, safe on every file system, and distinct
    /// for distinct names even where case does not count. Paths have none.
    pub(crate) fn key(&self) -> Option<String> {
        (!matches!(self, Self::Path(_))).then(|| key(&self.to_string()))
    }
}

/// The folder of the model that has this name.
pub(crate) fn key(name: &str) -> String {
    let readable: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(64)
        .collect();
    let digest = Sha256::digest(name.as_bytes());
    let tail: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{readable}-{tail}")
}

/// A path that needs no look at the disk to be recognised.
fn explicit_path(text: &str) -> Option<PathBuf> {
    if let Some(rest) = text.strip_prefix("~/")
        && let Ok(home) = etcetera::home_dir()
    {
        return Some(home.join(rest));
    }
    let bytes = text.as_bytes();
    let drive = bytes.len() >= 3
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.get(1) == Some(&b':')
        && matches!(bytes.get(2), Some(b'/' | b'\\'));
    let gguf = text.to_ascii_lowercase().ends_with(".gguf") && !text.contains(':');
    let dotted = matches!(text, "." | "..");
    let prefixed = ["/", "\\", "./", "../", ".\\", "..\\"].iter().any(|p| text.starts_with(p));
    (drive || gguf || dotted || prefixed || text.contains('\\')).then(|| text.into())
}

impl HubName {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut rest, mut revision) = (text.to_owned(), None);
        let mut part = None;
        if let Some((repo, tail)) = text.split_once(':') {
            rest = repo.to_owned();
            let (name, tag) = split_revision(tail);
            part = Some(name.trim_end_matches('/').to_owned());
            revision = tag;
        }
        if let (repo, Some(tag)) = split_revision(&rest) {
            if revision.is_some() {
                return Err("it has two revisions".into());
            }
            (revision, rest) = (Some(tag), repo.to_owned());
        }
        let halves: Vec<&str> = rest.split('/').collect();
        if halves.len() != 2 || !halves.iter().all(|half| hub_word(half)) {
            return Err("a repository is `org/repo`, of letters, digits, `-`, `_` and `.`".into());
        }
        if let Some(part) = &part {
            FileName::new(part).map_err(|why| format!("its part {part:?} {why}"))?;
        }
        if let Some(tag) = &revision {
            let safe = tag.split('/').all(hub_word);
            if !safe || tag.len() > 255 {
                return Err(format!("its revision {tag:?} is not one"));
            }
        }
        Ok(Self { repo: rest, part, revision })
    }
}

fn split_revision(text: &str) -> (&str, Option<String>) {
    text.split_once('@').map_or((text, None), |(head, tag)| (head, Some(tag.to_owned())))
}

/// One word of a repository's name or of a revision.
fn hub_word(word: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&word.len())
        && word.chars().all(allowed)
        && !word.starts_with(['.', '-'])
        && !word.ends_with('.')
        && !word.contains("..")
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(built_in) => f.write_str(built_in.name),
            Self::Hub(hub) => hub.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(part) = &self.part {
            write!(f, ":{part}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// A relative file name that is safe to join to a folder of the store on every system: at most
/// eight plain names (see [`check_file_name`]) with `/` between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileName(String);

impl FileName {
    /// Checks a name; the error is the rule it breaks.
    pub(crate) fn new(name: &str) -> Result<Self, String> {
        if name.len() > 1024 || name.split('/').count() > 8 {
            return Err("is longer than 1024 bytes or deeper than 8 folders".into());
        }
        for component in name.split('/') {
            if component.is_empty() {
                return Err("has an empty component".into());
            }
            check_file_name(name, component).map_err(|error| error.to_string())?;
        }
        Ok(Self(name.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path under `folder`.
    pub(crate) fn under(&self, folder: &Path) -> PathBuf {
        let mut path = folder.to_path_buf();
        path.extend(self.0.split('/'));
        path
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelName> {
        ModelName::parse_with(text, |path| path == Path::new("models/here"))
    }

    #[test]
    fn tells_paths_names_and_repositories_apart() {
        for path in [
            "./x.gguf",
            "../x",
            "/x",
            "x.gguf",
            "dir/x.gguf",
            "C:\\x",
            "c:/x",
            ".",
            "..",
            "a\\b",
            "models/here",
        ] {
            let parsed = parse(path).unwrap();
            assert_eq!(parsed, ModelName::Path(path.into()), "{path}");
            assert_eq!(parsed.key(), None);
        }
        assert!(matches!(parse("smollm2").unwrap(), ModelName::BuiltIn(_)));
        for (text, repo, part, revision) in [
            ("org/repo", "org/repo", None, None),
            ("models/absent", "models/absent", None, None),
            ("Org/Repo-1.5_x:Q4_0", "Org/Repo-1.5_x", Some("Q4_0"), None),
            ("org/repo:sub/m.gguf", "org/repo", Some("sub/m.gguf"), None),
            ("org/repo@v1", "org/repo", None, Some("v1")),
            ("org/repo:x.gguf@refs/pr/1", "org/repo", Some("x.gguf"), Some("refs/pr/1")),
            ("org/repo@v1:x.gguf", "org/repo", Some("x.gguf"), Some("v1")),
        ] {
            let ModelName::Hub(hub) = parse(text).unwrap() else { panic!("{text}") };
            assert_eq!(hub.repo, repo);
            assert_eq!(hub.part.as_deref(), part);
            assert_eq!(hub.revision.as_deref(), revision);
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        for text in [
            "",
            "a/b/c",
            "org/",
            "/..\0",
            "org/re po",
            "org/..",
            "..org/x",
            "org/repo:../x",
            "org/repo:/etc/passwd",
            "org/repo:a/../../b",
            "org/repo@../x",
            "org/repo@a@b:c",
            "org/repo:",
            "org/repo@",
            "org/repo:NUL",
            "-x/y",
            "org/a..b",
            "org:x",
            "@x",
        ] {
            assert!(matches!(parse(text), Err(StoreError::BadName { .. })), "{text:?}");
        }
        assert!(matches!(parse("smollm"), Err(StoreError::UnknownName(_))));
        assert!(parse(&format!("org/{}", "a".repeat(97))).is_err());
        assert!(parse(&"a/".repeat(3000)).is_err());
    }

    #[test]
    fn keys_are_distinct_and_safe_on_every_file_system() {
        let texts = ["a/b", "A/b", "a/b:c", "a/b@c", "a/b-c", "a-b/c", "smollm2"];
        let keys: Vec<String> = texts.iter().map(|t| parse(t).unwrap().key().unwrap()).collect();
        for (index, key) in keys.iter().enumerate() {
            assert!(FileName::new(key).is_ok(), "{key}");
            assert!(!keys.iter().take(index).any(|other| other.eq_ignore_ascii_case(key)));
        }
        let long = format!("{}/{}:{}.gguf", "o".repeat(96), "r".repeat(96), "f".repeat(200));
        assert!(parse(&long).unwrap().key().unwrap().len() < 100);
    }

    #[test]
    fn file_names_stay_in_their_folder() {
        for name in [
            "",
            "/x",
            "x/",
            "a//b",
            "../x",
            "a/../b",
            "a/./b",
            ".git/config",
            "a\\b",
            "C:/x",
            "a/CON/b",
            "nul.txt",
            "x.",
            "x ",
            "a\nb",
            "a/b:c",
        ] {
            assert!(FileName::new(name).is_err(), "{name:?}");
        }
        assert!(FileName::new(&"a/".repeat(8)).is_err());
        assert!(FileName::new(&"a".repeat(256)).is_err());
        let name = FileName::new("onnx/cpu/model.onnx.data").unwrap();
        assert_eq!(name.under(Path::new("r")), Path::new("r").join("onnx/cpu/model.onnx.data"));
    }
}
