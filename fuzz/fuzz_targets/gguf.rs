//! A GGUF file of any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tangor_formats::{Gguf, Limits};

fuzz_target!(|data: &[u8]| {
    let bytes = data.to_vec().into();
    let Ok(gguf) = Gguf::parse("m.gguf", bytes, &Limits::default()) else { return };
    let metadata = gguf.metadata();
    for (key, value) in metadata.iter() {
        let _ = (value.scalar(), value.iter().count());
        let _ = (metadata.opt_str(key), metadata.opt_u32(key), metadata.opt_f32(key));
        let _ = metadata.opt_strings(key).map(|list| list.map(Iterator::count));
        let _ = metadata.opt_f32s(key).map(|list| list.map(Iterator::count));
        let _ = metadata.opt_i32s(key).map(|list| list.map(Iterator::count));
    }
    for info in gguf.tensors() {
        let Ok(weight) = gguf.tensor(info.name()) else { continue };
        let mut row = vec![0.0; weight.cols()];
        weight.row_f32(0, &mut row);
        weight.row_f32(weight.rows() - 1, &mut row);
        assert!(row.iter().all(|w| !w.is_nan()), "a weight that passed is a number");
    }
});
