//! A model's file in memory that another program changes; only Unix lets it.

use crate::build::{GgufFile, GgufTensor, f32s};
use std::io::Write;
use tangor_formats::{Checkpoint, ErrorKind, Limits, Result, Source};
use tangor_tensor::{Bytes, MapGuard, map_file};

/// A mapped file on disk, under whatever name.
struct Disk(Bytes, MapGuard);

impl Source for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(vec!["m.gguf".into()])
    }

    fn read(&self, _: &str, _: u64) -> Result<Option<Bytes>> {
        Ok(None)
    }

    fn map(&self, _: &str) -> Result<Option<(Bytes, MapGuard)>> {
        Ok(Some((self.0.clone(), self.1.clone())))
    }
}

#[test]
fn a_file_that_shrinks_while_its_weights_are_read_is_noticed() {
    let rows = 1 << 12;
    let file = GgufFile::llama().but(|f| {
        f.entries.truncate(9);
        f.tensors = vec![GgufTensor::new("w", 0, &[32, rows], f32s(&vec![1.0; 32 << 12]))];
    });
    let mut disk = tempfile::tempfile().unwrap();
    disk.write_all(&file.bytes()).unwrap();
    let (bytes, guard) = map_file(&disk).unwrap();
    let checkpoint = Checkpoint::open(&Disk(bytes, guard), None, &Limits::default()).unwrap();
    checkpoint.check_unchanged().unwrap();
    disk.set_len(4096).unwrap();
    let Checkpoint::Gguf(gguf) = &checkpoint else { panic!("not a GGUF model") };
    let mut last = [1.0; 32];
    gguf.tensor("w").unwrap().row_f32((rows - 1) as usize, &mut last);
    assert_eq!(last, [0.0; 32]);
    assert_eq!(checkpoint.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
}
