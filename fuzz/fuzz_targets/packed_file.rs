//! An entry of the cache of packed weights with any edits: what is found is what was written.
//!
//! `mend`, then edits (`operation`, `place`, `byte`). The low bit of `mend` mends the checksums of
//! the tail and the foot, so that what lies behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;
use tangor_store::{Store, StoreOptions};

const FOOT: usize = 32;

struct Fixture {
    store: Store,
    path: PathBuf,
    whole: Vec<u8>,
    data: Vec<u8>,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("tangor-fuzz-{}", std::process::id()));
        let options = StoreOptions { root: Some(root), ..StoreOptions::default() };
        let store = Store::open(options).expect("a store");
        let data: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        let writer = store.create_packed("model", "form", 4000).expect("room");
        let mut writer = writer.expect("nobody else");
        writer.write(&data).expect("it is written");
        writer.finish("index".into()).expect("it is finished");
        let path = store.packed().pop().expect("an entry").path;
        let whole = std::fs::read(&path).expect("its file");
        Fixture { store, path, whole, data }
    })
}

/// Makes the checksums of a file right, as far as it has any.
fn mend(bytes: &mut [u8]) {
    let Some(foot) = bytes.len().checked_sub(FOOT) else { return };
    let mut len = [0; 8];
    len.copy_from_slice(&bytes[foot + 16..foot + 24]);
    if let Some(tail) =
        usize::try_from(u64::from_le_bytes(len)).ok().and_then(|n| foot.checked_sub(n))
    {
        let check = crc32fast::hash(&bytes[tail..foot]);
        bytes[foot + 12..foot + 16].copy_from_slice(&check.to_le_bytes());
    }
    let check = crc32fast::hash(&bytes[foot..foot + 24]);
    bytes[foot + 24..foot + 28].copy_from_slice(&check.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((&flags, mut edits)) = input.split_first() else { return };
    let fixture = fixture();
    let mut bytes = fixture.whole.clone();
    while let [operation, high, low, byte, more @ ..] = edits {
        // Places count from the end, where everything but the data is.
        let place = bytes.len().saturating_sub(usize::from(u16::from_be_bytes([*high, *low])));
        match operation % 4 {
            0 if place < bytes.len() => bytes[place] = *byte,
            1 if place < bytes.len() => drop(bytes.remove(place)),
            2 => bytes.truncate(place),
            _ => bytes.insert(place, *byte),
        }
        edits = more;
    }
    if flags & 1 == 1 {
        mend(&mut bytes);
    }
    std::fs::write(&fixture.path, &bytes).expect("a file that can be written");
    let _ = std::fs::remove_file(fixture.path.with_extension("seen"));
    if let Some(found) = fixture.store.find_packed("model", "form") {
        assert_eq!(found.data[..], fixture.data, "other data was believed");
    }
});
