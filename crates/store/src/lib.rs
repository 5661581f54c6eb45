//! Model names to files on disk: the only crate that writes disk or dials out.
//!
//! [`Store::pull`] fetches a model, [`Store::resolve`] finds it again, [`Store::open_checkpoint`]
//! hands its bytes to `tangor-formats`. Local files and folders go the same way; they need no pull.
//!
//! What the store promises: a model counts as installed only once every byte of it has matched its
//! digest and is durable. That holds through crashes, power cuts, full disks and other processes,
//! because an entry's manifest is written last and nothing but the manifest is believed:
//! ```text
//! root/locks/KEY.lock            held while an entry is changed
//! root/models/KEY/manifest.json  every file's length, digest and stamp
//! root/models/KEY/name           whose entry it is, for whoever finds one without a manifest
//! root/models/KEY/files/…        the model, as other programs would expect it
//! root/models/KEY/part/…         what has arrived so far, for the next pull to go on with
//! root/removed/KEY               an entry that is being removed
//! root/packed/…                  packed weights, which can be made again (see `packed`)
//! root/notes/…                   what was measured of this machine, which can be measured again
//! ```
//! Before use, files whose length, times and inode are the recorded ones are believed; any others
//! are hashed again ([`Store::verify`] hashes all). So ordinary damage (an edit, a truncation, a
//! swap, a restored backup) is found before the first token, at no cost in the ordinary case.
#![forbid(unsafe_code)]

mod builtin;
mod digest;
mod error;
mod http;
mod hub;
mod incoming;
mod manifest;
mod name;
mod note;
mod options;
mod packed;
mod pull;
mod select;
mod source;
mod store;
mod sys;
mod wheel;

pub use crate::builtin::{BUILT_IN, BuiltIn};
pub use crate::digest::Sha256Digest;
pub use crate::error::{Result, StoreError};
pub use crate::name::{HubName, ModelName};
pub use crate::options::{Patience, Phase, Progress, StoreOptions, Token};
pub use crate::packed::{PackedEntry, PackedInfo, PackedWriter};
pub use crate::source::DirSource;
pub use crate::store::{FileInfo, Installed, Origin, Store, Unfinished};
pub use crate::sys::{Disk, DiskFile, RealDisk};
