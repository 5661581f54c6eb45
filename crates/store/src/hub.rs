//! Models of a hub that speaks Hugging Face's protocol.

use crate::digest::{Announced, Sha256Digest};
use crate::http::{Client, Download, passing};
use crate::incoming::{Incoming, Place, Wanted};
use crate::manifest::Record;
use crate::name::{FileName, HubName};
use crate::options::{Phase, StoreOptions, Watch};
use crate::pull::{Fetched, check_space};
use crate::select::{Remote, select};
use crate::store::folder_bytes;
use crate::{Origin, Result, StoreError};
use serde::Deserialize;
use std::fmt::Write as _;

/// Bytes of a repository's description that are read at the most.
const MAX_DESCRIPTION: usize = 32 << 20;

/// Fetches a model from its repository.
pub(crate) fn fetch(
    name: &HubName,
    options: &StoreOptions,
    place: Place<'_>,
    watch: &mut Watch<'_>,
) -> Result<Fetched> {
    let client = Client::new(options)?;
    let repo = Repo::describe(&client, name, watch)?;
    let chosen = select(&name.repo, &repo.files, name.part.as_deref())?;
    let mut local: Vec<String> = Vec::new();
    for (_, path) in &chosen.files {
        let refuse =
            |why| StoreError::UnsafeName { of: name.repo.clone(), name: path.clone(), why };
        FileName::new(path).map_err(refuse)?;
        local.push(path.to_lowercase());
    }
    local.sort();
    if let Some([twice, _]) = local.array_windows().find(|[one, other]| one == other) {
        let why = "another file has the same name but for its case".to_owned();
        return Err(StoreError::UnsafeName { of: name.repo.clone(), name: twice.clone(), why });
    }
    let total: u64 = chosen.files.iter().filter_map(|(file, _)| file.bytes).sum();
    let here = folder_bytes(place.part).saturating_add(folder_bytes(place.files));
    check_space(place, total.saturating_sub(here))?;
    let mut files = Vec::new();
    for (remote, path) in &chosen.files {
        let url = client.url(&format!(
            "/{}/resolve/{}/{}",
            name.repo,
            encode(&repo.commit, ""),
            encode(&remote.path, "/")
        ));
        let what = format!("{} of {}", remote.path, name.repo);
        files.push(File { client: &client, url, what, remote, path }.fetch(place, watch)?);
    }
    let origin = Origin::Hub { repo: name.repo.clone(), commit: repo.commit };
    Ok(Fetched { origin, open: chosen.open, files })
}

/// What a repository has.
struct Repo {
    commit: String,
    files: Vec<Remote>,
}

#[derive(Deserialize)]
struct Description {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Repo {
    fn describe(client: &Client, name: &HubName, watch: &mut Watch<'_>) -> Result<Self> {
        let revision = name.revision.as_deref().unwrap_or("main");
        let path =
            format!("/api/models/{}/revision/{}?blobs=true", name.repo, encode(revision, ""));
        let text = client.read(&client.url(&path), MAX_DESCRIPTION, &name.to_string(), watch)?;
        let bad = |why: String| StoreError::BadAnswer { host: client.host(), why };
        let description: Description =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        // The commit pins the files: what is pushed while a pull goes on does not matter to it.
        let commit = description.sha.unwrap_or_else(|| revision.to_owned());
        if commit.is_empty() || commit.len() > 255 || commit.contains(char::is_control) {
            return Err(bad("its commit is not one".to_owned()));
        }
        let files = description.siblings.into_iter().map(Remote::from).collect();
        Ok(Self { commit, files })
    }
}

impl From<Sibling> for Remote {
    fn from(file: Sibling) -> Self {
        // The blob of a large file is a pointer to it, and says nothing about its bytes.
        let (bytes, announced) = match &file.lfs {
            Some(lfs) => {
                let digest = lfs.sha256.as_deref().and_then(Sha256Digest::parse);
                (lfs.size.or(file.size), digest.map(Announced::Sha256))
            }
            None => (file.size, file.blob.as_deref().and_then(Announced::from_etag)),
        };
        Self { path: file.rfilename, bytes, announced }
    }
}

/// A file to fetch.
struct File<'a> {
    client: &'a Client,
    url: String,
    /// For messages.
    what: String,
    remote: &'a Remote,
    /// Its name in the model.
    path: &'a str,
}

impl File<'_> {
    fn fetch(&self, place: Place<'_>, watch: &mut Watch<'_>) -> Result<Record> {
        watch.tick(Phase::Resolving, self.path, 0, self.remote.bytes)?;
        let (wanted, mut first) = self.wanted(watch)?;
        if let Some(record) = place.finished(&wanted, watch)? {
            return Ok(record);
        }
        let mut incoming = Incoming::open(place, wanted.clone(), watch)?;
        let resumed = incoming.done() > 0;
        self.complete(&mut incoming, &mut first, watch)?;
        match incoming.commit() {
            // The bytes of the earlier attempt may have been damaged since.
            Err(StoreError::Mismatch { .. }) if resumed => {
                let mut incoming = Incoming::open(place, wanted, watch)?;
                self.complete(&mut incoming, &mut None, watch)?;
                incoming.commit()
            }
            other => other,
        }
    }

    /// What the file will be. Where the description of the repository does not tell, the headers
    /// of the file do; then its download has begun.
    fn wanted(&self, watch: &mut Watch<'_>) -> Result<(Wanted, Option<Download>)> {
        let wanted = |bytes, announced| Wanted { path: self.path.to_owned(), bytes, announced };
        if let Remote { bytes: Some(bytes), announced: Some(announced), .. } = *self.remote {
            return Ok((wanted(bytes, Some(announced)), None));
        }
        let download = self.client.retry(watch, |client, watch| {
            let download = client.get(&self.url, 0, watch)?;
            download.expect(200, &self.what)?;
            Ok(download)
        })?;
        let head = &download.head;
        let bytes = self.remote.bytes.or(head.linked_length).or(head.length);
        let bytes = bytes.ok_or_else(|| self.bad("it does not say how long the file is"))?;
        let announced = self.remote.announced.or(head.announced);
        Ok((wanted(bytes, announced), Some(download)))
    }

    /// Fetches what is missing. An attempt that gets further by a megabyte is no failure.
    fn complete(
        &self,
        incoming: &mut Incoming<'_>,
        first: &mut Option<Download>,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        const FURTHER: u64 = 1 << 20;
        let (mut best, mut failed) = (incoming.done(), 0);
        loop {
            match self.transfer(incoming, first.take(), watch) {
                Err(error) if passing(&error) => {
                    let further = incoming.done() >= best.saturating_add(FURTHER);
                    failed = if further { 1 } else { failed + 1 };
                    best = best.max(incoming.done());
                    self.client.pause(failed, error, watch)?;
                }
                other => return other,
            }
        }
    }

    /// One request for what is missing.
    fn transfer(
        &self,
        incoming: &mut Incoming<'_>,
        first: Option<Download>,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        let total = incoming.wanted().bytes;
        watch.tick(Phase::Downloading, self.path, incoming.done(), Some(total))?;
        if incoming.done() == total {
            return Ok(());
        }
        let mut download = match first.filter(|_| incoming.done() == 0) {
            Some(download) => download,
            None => self.client.get(&self.url, incoming.done(), watch)?,
        };
        match (download.head.status, download.head.range) {
            (206, Some((from, whole))) if from == incoming.done() && whole == total => {}
            (206, _) => return Err(self.bad("it sent another part of the file than was asked for")),
            // What is here is of no use to a server that cannot go on with it.
            (200, _) if incoming.done() > 0 => incoming.restart(incoming.wanted().clone())?,
            (416, _) if incoming.done() > 0 => {
                incoming.restart(incoming.wanted().clone())?;
                download = self.client.get(&self.url, 0, watch)?;
                download.expect(200, &self.what)?;
            }
            _ => download.expect(200, &self.what)?,
        }
        self.consistent(incoming, &download)?;
        while let Some(piece) = download.next(watch)? {
            incoming.write(&piece)?;
            watch.tick(Phase::Downloading, self.path, incoming.done(), Some(total))?;
        }
        if incoming.done() < total {
            let why = format!("it hung up after {} of {total} bytes", incoming.done());
            return Err(StoreError::Unreachable { host: self.client.host(), why });
        }
        Ok(())
    }

    /// Fails if the headers contradict what is known about the file.
    fn consistent(&self, incoming: &Incoming<'_>, download: &Download) -> Result<()> {
        let Wanted { bytes, announced, .. } = incoming.wanted();
        let mismatch = |expected: String, got: String| {
            Err(StoreError::Mismatch { file: self.path.to_owned(), expected, got })
        };
        let left = bytes - incoming.done();
        if let Some(length) = download.head.length.filter(|&length| length != left) {
            return mismatch(format!("{left} bytes"), format!("{length} bytes"));
        }
        match (announced, download.head.announced) {
            (Some(Announced::Sha256(one)), Some(Announced::Sha256(other))) if *one != other => {
                mismatch(format!("SHA-256 {one}"), format!("SHA-256 {other}"))
            }
            _ => Ok(()),
        }
    }

    fn bad(&self, why: &str) -> StoreError {
        StoreError::BadAnswer { host: self.client.host(), why: format!("{}: {why}", self.what) }
    }
}

/// Percent-encodes everything but letters, digits, `-._~` and what is in `kept`.
fn encode(text: &str, kept: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) {
            encoded.push(c);
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü?#%.gguf", "/"), "a%20b/%C3%BC%3F%23%25.gguf");
    }
}
