//! A reader for the metadata of GGUF files, just enough for vocabularies in tests.

use std::collections::HashMap;
use std::path::Path;
use tangor_text::GgufVocab;

enum Meta {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    Other,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N);
        self.0 = rest;
        head.try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn text(&mut self) -> String {
        let len = usize::try_from(self.u64()).unwrap();
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8_lossy(head).into_owned()
    }

    fn value(&mut self, kind: u32) -> Meta {
        match kind {
            0 | 1 | 7 => Meta::Number(u64::from(self.bytes::<1>()[0])),
            2 | 3 => Meta::Number(u64::from(u16::from_le_bytes(self.bytes()))),
            4 | 5 => Meta::Number(u64::from(self.u32())),
            6 => {
                self.u32();
                Meta::Other
            }
            8 => Meta::Text(self.text()),
            9 => self.array(),
            10 | 11 => Meta::Number(self.u64()),
            _ => {
                self.u64();
                Meta::Other
            }
        }
    }

    fn array(&mut self) -> Meta {
        let kind = self.u32();
        let len = self.u64();
        match kind {
            5 => Meta::Ints((0..len).map(|_| i32::from_le_bytes(self.bytes())).collect()),
            6 => Meta::Floats((0..len).map(|_| f32::from_le_bytes(self.bytes())).collect()),
            8 => Meta::Texts((0..len).map(|_| self.text()).collect()),
            other => {
                (0..len).for_each(|_| drop(self.value(other)));
                Meta::Other
            }
        }
    }
}

/// Reads the vocabulary of a GGUF file.
pub(crate) fn read(path: &Path) -> GgufVocab {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&file)
}

/// Reads the vocabulary of a GGUF file's bytes.
pub(crate) fn parse(file: &[u8]) -> GgufVocab {
    let mut reader = Reader(file);
    assert_eq!(&reader.bytes::<4>(), b"GGUF");
    assert!(reader.u32() >= 2);
    let _tensors = reader.u64();
    let count = reader.u64();
    let mut meta: HashMap<String, Meta> = HashMap::new();
    for _ in 0..count {
        let key = reader.text();
        let kind = reader.u32();
        meta.insert(key, reader.value(kind));
    }
    let mut take = |key: &str| meta.remove(key);
    fn text(meta: Option<Meta>) -> Option<String> {
        if let Some(Meta::Text(text)) = meta { Some(text) } else { None }
    }
    fn texts(meta: Option<Meta>) -> Vec<String> {
        if let Some(Meta::Texts(texts)) = meta { texts } else { Vec::new() }
    }
    fn number(meta: Option<Meta>) -> Option<u32> {
        if let Some(Meta::Number(n)) = meta { u32::try_from(n).ok() } else { None }
    }
    fn flag(meta: Option<Meta>) -> Option<bool> {
        if let Some(Meta::Number(n)) = meta { Some(n != 0) } else { None }
    }
    GgufVocab {
        name: text(take("general.name")),
        model: text(take("tokenizer.ggml.model")).unwrap_or_default(),
        pre: text(take("tokenizer.ggml.pre")),
        tokens: texts(take("tokenizer.ggml.tokens")),
        scores: match take("tokenizer.ggml.scores") {
            Some(Meta::Floats(scores)) => scores,
            _ => Vec::new(),
        },
        token_types: match take("tokenizer.ggml.token_type") {
            Some(Meta::Ints(types)) => types,
            _ => Vec::new(),
        },
        merges: texts(take("tokenizer.ggml.merges")),
        bos: number(take("tokenizer.ggml.bos_token_id")),
        eos: number(take("tokenizer.ggml.eos_token_id")),
        eot: number(take("tokenizer.ggml.eot_token_id")),
        eom: number(take("tokenizer.ggml.eom_token_id")),
        unk: number(take("tokenizer.ggml.unknown_token_id")),
        pad: number(take("tokenizer.ggml.padding_token_id")),
        add_bos: flag(take("tokenizer.ggml.add_bos_token")),
        add_eos: flag(take("tokenizer.ggml.add_eos_token")),
        add_space_prefix: flag(take("tokenizer.ggml.add_space_prefix")),
        chat_template: text(take("tokenizer.chat_template")),
    }
}
