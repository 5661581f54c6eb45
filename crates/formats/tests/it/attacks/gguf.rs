//! GGUF files that must be refused.

use super::Attack;
use crate::build::{
    ARRAY, BOOL, F32, GgufFile, GgufTensor, STR, U64, array, f32s, f32v, q4_0, string, strings,
    strv, u32v,
};
use tangor_formats::ErrorKind::{self, Limit, Malformed, Missing, Truncated, Unsupported};

const COUNTS: [u64; 4] = [1 << 31, (1 << 32) - 1, 1 << 63, u64::MAX];

struct List(Vec<Attack>);

impl List {
    fn add(
        &mut self,
        class: &'static str,
        name: impl Into<String>,
        bytes: Vec<u8>,
        kind: ErrorKind,
    ) {
        let files = vec![("m.gguf".to_owned(), bytes)];
        self.0.push(Attack { class, name: format!("gguf: {}", name.into()), files, kind });
    }

    fn file(
        &mut self,
        class: &'static str,
        name: impl Into<String>,
        file: GgufFile,
        kind: ErrorKind,
    ) {
        self.add(class, name, file.bytes(), kind);
    }

    /// A tiny llama with one entry replaced.
    fn entry(&mut self, class: &'static str, key: &str, value: (u32, Vec<u8>), kind: ErrorKind) {
        let name = format!("{key} is {value:?}").chars().take(80).collect::<String>();
        self.file(class, name, GgufFile::llama().with(key, value), kind);
    }

    /// A tiny llama with its first tensor changed.
    fn tensor(
        &mut self,
        class: &'static str,
        name: impl Into<String>,
        change: impl FnOnce(&mut GgufTensor),
        kind: ErrorKind,
    ) {
        let file = GgufFile::llama().but(|file| change(&mut file.tensors[0]));
        self.file(class, name, file, kind);
    }
}

pub(crate) fn attacks() -> Vec<Attack> {
    let mut list = List(Vec::new());
    heads_and_tails(&mut list);
    counts(&mut list);
    wraps(&mut list);
    arrangement(&mut list);
    types(&mut list);
    values(&mut list);
    text(&mut list);
    splits(&mut list);
    list.0
}

fn heads_and_tails(list: &mut List) {
    let good = GgufFile::llama();
    list.add("F01", "empty", vec![], Truncated);
    list.add("F01", "one byte", b"G".to_vec(), Truncated);
    list.add("F01", "magic only", b"GGUF".to_vec(), Truncated);
    list.file("F01", "wrong magic", good.clone().but(|f| f.magic = *b"GGML"), Malformed);
    for version in [0, 1, 4, u32::MAX] {
        let file = good.clone().but(|f| f.version = version);
        list.file("F01", format!("version {version}"), file, Unsupported);
    }
    let big = good.clone().but(|f| f.version = 3u32.swap_bytes());
    list.file("F01", "big-endian", big, Unsupported);
    for tail in [1, 32, 4096] {
        let file = good.clone().but(|f| f.tail = vec![0; tail]);
        list.file("F01", format!("{tail} bytes appended"), file, Malformed);
    }
    let bytes = good.bytes();
    for len in [12, 24, 100, good.header().len(), bytes.len() - 33] {
        list.add("F01", format!("cut to {len} bytes"), bytes[..len].to_vec(), Truncated);
    }
}

fn counts(list: &mut List) {
    let good = GgufFile::llama();
    for count in COUNTS {
        let file = good.clone().but(|f| f.tensor_count = Some(count));
        list.file("F02", format!("{count} tensors"), file, Limit);
        let file = good.clone().but(|f| f.entry_count = Some(count));
        list.file("F02", format!("{count} entries"), file, Limit);
        list.entry("F02", "x", array(F32, count, &[0; 16]), Limit);
        list.entry("F02", "x", array(STR, count, &[0; 16]), Limit);
        list.entry("F02", "x", (STR, count.to_le_bytes().to_vec()), Limit);
        let mut bytes = good.clone().but(|f| f.entries.clear()).header();
        bytes.splice(16..24, 1u64.to_le_bytes());
        bytes.splice(24.., count.to_le_bytes());
        list.add("F02", format!("a key of {count} bytes"), bytes, Limit);
    }
    let zero = good.clone().but(|f| f.tensor_count = Some(0));
    list.file("F02", "no tensors, but data", zero, Malformed);
    let none = good.clone().but(|f| f.entries.clear());
    list.file("F02", "no entries", none, Missing);
    let more = good.clone().but(|f| f.tensor_count = Some(65_536));
    list.file("F02", "more tensors than there are", more, Malformed);
    let more = good.but(|f| f.entry_count = Some(65_536));
    list.file("F02", "more entries than there are", more, Limit);
    list.entry("F02", "x", array(F32, 4 << 20, &[0; 16]), Truncated);
    list.entry("F02", "x", (STR, (16u64 << 20).to_le_bytes().to_vec()), Truncated);
    for rank in [5, 65, 1 << 31, u32::MAX] {
        list.tensor("F02", format!("rank {rank}"), |t| t.rank = Some(rank), Limit);
    }
}

fn wraps(list: &mut List) {
    for dims in [
        [1u64 << 32, 1 << 32].to_vec(),
        vec![1 << 63, 2],
        vec![32, u64::MAX],
        vec![1 << 16; 4],
        vec![!31, 1],
        vec![32, 1 << 59],
        vec![32, (u64::MAX / 18) & !1],
    ] {
        let name = format!("dimensions {dims:?}");
        list.tensor("F03", name, |t| t.dims = dims, Malformed);
    }
    for offset in [!31, u64::MAX, 1 << 63, u64::MAX - 71] {
        list.tensor("F03", format!("offset {offset}"), |t| t.offset = Some(offset), Malformed);
    }
    // As large as the arithmetic allows, and as the file is not.
    list.tensor("F03", "one exabyte", |t| t.dims = vec![32, 1 << 50], Malformed);
    let huge = GgufFile::llama().but(|f| {
        f.tensors.truncate(1);
        f.tensors[0].dims = vec![32, 1 << 50];
    });
    list.file("F03", "one exabyte, and nothing after it", huge, Truncated);
    for alignment in [0, 1, 3, 4, 1 << 31, u32::MAX] {
        list.entry("F03", "general.alignment", u32v(alignment), Malformed);
    }
    list.entry("F03", "general.alignment", strv("32"), Malformed);
    list.entry("F03", "general.alignment", array(F32, 1, &[0; 4]), Malformed);
    list.entry("F03", "general.alignment", (U64, (1u64 << 40).to_le_bytes().into()), Malformed);
}

fn arrangement(list: &mut List) {
    let good = GgufFile::llama();
    let second = |offset: u64| good.clone().but(|f| f.tensors[1].offset = Some(offset));
    list.file("F04", "overlap", second(64), Malformed);
    list.file("F04", "the same place twice", second(0), Malformed);
    list.file("F04", "hole", second(128), Malformed);
    list.file("F04", "not aligned", second(97), Malformed);
    list.file("F04", "past the end", second(1 << 30), Malformed);
    let descending = good.clone().but(|f| {
        f.tensors[0].offset = Some(128);
        f.tensors[1].offset = Some(0);
    });
    list.file("F04", "descending", descending, Malformed);
    let twice = good.clone().but(|f| f.tensors[1].name = f.tensors[0].name.clone());
    list.file("F04", "a tensor twice", twice, Malformed);
    let twice = good.but(|f| f.entries.push(f.entries[0].clone()));
    list.file("F04", "a key twice", twice, Malformed);
    list.tensor("F04", "no columns", |t| t.dims = vec![0, 4], Malformed);
    list.tensor("F04", "no rows", |t| t.dims = vec![32, 0], Malformed);
    list.tensor("F04", "rank 0", |t| t.dims = vec![], Malformed);
    list.tensor("F04", "rank 65", |t| t.dims = vec![1; 65], Limit);
}

fn types(list: &mut List) {
    for kind in [5, 31, 41, 99, u32::MAX] {
        list.tensor("F05", format!("unknown type {kind}"), |t| t.kind = kind, Unsupported);
    }
    for kind in [9, 15, 16, 19, 24, 26, 28, 39] {
        list.tensor("F05", format!("type {kind}, not supported"), |t| t.kind = kind, Unsupported);
    }
    for (kind, cols) in [(2, 31), (2, 1), (12, 32), (14, 255), (23, 128)] {
        let name = format!("type {kind} in rows of {cols}");
        list.tensor("F05", name, |t| (t.kind, t.dims) = (kind, vec![cols, 4]), Malformed);
    }
}

fn values(list: &mut List) {
    for (name, bits) in [("NaN", 0x7e00), ("infinite", 0x7c00), ("-infinite", 0xfc00)] {
        list.tensor("F06", format!("{name} scale"), |t| t.data = q4_0(4, bits), Malformed);
    }
    for value in [f32::NAN, f32::INFINITY] {
        let file = GgufFile::llama().but(|f| f.tensors[1].data = f32s(&[value; 32]));
        list.file("F06", format!("elements that are {value}"), file, Malformed);
    }
    let key = "llama.rope.freq_base";
    for value in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        list.entry("F06", key, f32v(value), Malformed);
    }
    list.entry("F06", key, strv("10000"), Malformed);
    list.entry("F06", "llama.attention.layer_norm_rms_epsilon", f32v(-1e-5), Malformed);
    list.entry("F06", "llama.attention.head_count", u32v(0), Malformed);
    list.entry("F06", "llama.attention.head_count_kv", u32v(0), Malformed);
    list.entry("F06", "llama.attention.head_count_kv", u32v(3), Malformed);
    list.entry("F06", "llama.attention.head_count_kv", u32v(8), Malformed);
    list.entry("F06", "llama.block_count", u32v(0), Malformed);
    list.entry("F06", "llama.block_count", u32v(1_000_000), Limit);
    list.entry("F06", "llama.block_count", (U64, u64::MAX.to_le_bytes().to_vec()), Limit);
    list.entry("F06", "llama.embedding_length", u32v(0), Malformed);
    list.entry("F06", "llama.context_length", u32v(0), Malformed);
    list.entry("F06", "tokenizer.ggml.tokens", strings(&["a", "b", "c"]), Malformed);
    list.entry("F06", "tokenizer.ggml.tokens", strings(&["a"; 5]), Malformed);
    list.entry("F06", "general.architecture", u32v(1), Malformed);
}

fn text(list: &mut List) {
    let depth = |levels: usize| {
        let level = [ARRAY.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
        (ARRAY, level.repeat(levels))
    };
    list.entry("F07", "x", depth(1), Unsupported);
    list.entry("F07", "x", depth(8), Unsupported);
    list.entry("F07", "x", depth(100_000), Unsupported);
    list.entry("F07", "x", (STR, string(b"\xff\xfe")), Malformed);
    list.entry("F07", "x", (STR, string(b"\xed\xa0\x80")), Malformed);
    list.entry("F07", "x", array(STR, 1, &string(b"\xc3")), Malformed);
    list.entry("F07", "x", (BOOL, vec![2]), Malformed);
    list.entry("F07", "x", array(BOOL, 2, &[1, 255]), Malformed);
    for kind in [13, 255, u32::MAX] {
        list.entry("F07", "x", (kind, vec![0; 8]), Malformed);
        list.entry("F07", "x", array(kind, 1, &[0; 8]), Malformed);
    }
}

fn splits(list: &mut List) {
    let part = |number: u32, count: u32, tensors: u32| {
        let at = number as usize;
        GgufFile::llama()
            .with("split.no", (2, u16::try_from(number).unwrap().to_le_bytes().to_vec()))
            .with("split.count", (2, u16::try_from(count).unwrap().to_le_bytes().to_vec()))
            .with("split.tensors.count", u32v(tensors))
            .but(|f| f.tensors = vec![f.tensors[at].clone()])
    };
    let mut add = |class, name: &str, files: &[(&str, GgufFile)], kind| {
        let files = files.iter().map(|(name, file)| ((*name).to_owned(), file.bytes())).collect();
        list.0.push(Attack { class, name: format!("gguf split: {name}"), files, kind });
    };
    let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    add("F01", "a part is missing", &[(first, part(0, 2, 2))], Missing);
    add("F01", "only the last part", &[(second, part(1, 2, 2))], Missing);
    let swapped = [(first, part(1, 2, 2)), (second, part(0, 2, 2))];
    add("F04", "parts swapped", &swapped, Malformed);
    add("F04", "a part twice", &[(first, part(0, 2, 2)), (second, part(0, 2, 2))], Malformed);
    add(
        "F04",
        "parts of another count",
        &[(first, part(0, 3, 3)), (second, part(1, 3, 3))],
        Malformed,
    );
    add(
        "F02",
        "fewer tensors than said",
        &[(first, part(0, 2, 3)), (second, part(1, 2, 3))],
        Malformed,
    );
    let renamed = part(1, 2, 2).but(|f| f.tensors[0] = GgufFile::llama().tensors[0].clone());
    add("F04", "a tensor in two parts", &[(first, part(0, 2, 2)), (second, renamed)], Malformed);
    add("F04", "a part that stands alone", &[("m.gguf", part(0, 2, 2))], Malformed);
    add("F02", "part 0", &[("m-00000-of-00002.gguf", part(0, 2, 2))], Malformed);
    add("F02", "part 3 of 2", &[("m-00003-of-00002.gguf", part(0, 2, 2))], Malformed);
    add("F02", "99999 parts", &[("m-00001-of-99999.gguf", part(0, 2, 2))], Limit);
}
