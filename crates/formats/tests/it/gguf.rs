//! What a good GGUF file says.

use crate::build::{F32, GgufFile, GgufTensor, I32, STR, U64, array, f32s, f32v, q4_0, strv, u32v};
use tangor_formats::gguf::{Kind, Scalar};
use tangor_formats::{Checkpoint, ErrorKind, Gguf, Limits, MemorySource, Result};

fn parse(file: &GgufFile) -> Result<Gguf> {
    Gguf::parse("m.gguf", file.bytes().into(), &Limits::default())
}

fn row(gguf: &Gguf, name: &str, row: usize) -> Vec<f32> {
    let weight = gguf.tensor(name).unwrap();
    let mut out = vec![0.0; weight.cols()];
    weight.row_f32(row, &mut out);
    out
}

#[test]
fn metadata_reads_as_it_was_written() {
    let gguf = parse(&GgufFile::llama()).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.u32("llama.context_length").unwrap(), 128);
    assert_eq!(metadata.usize("llama.embedding_length").unwrap(), 32);
    assert!((metadata.f32("llama.rope.freq_base").unwrap() - 10_000.0).abs() < 1e-9);
    assert!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap());
    let tokens: Vec<&str> = metadata.strings("tokenizer.ggml.tokens").unwrap().collect();
    assert_eq!(tokens, ["<s>", "a", "bé", ""]);
    assert_eq!(metadata.len_of("tokenizer.ggml.tokens"), 4);
    assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap().collect::<Vec<_>>(), [0.0; 4]);
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap().collect::<Vec<_>>(), [1; 4]);
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!((keys[0], keys.len()), ("general.architecture", 13));
}

#[test]
fn numbers_are_found_by_value_whatever_their_width() {
    let file = GgufFile::llama()
        .with("a", (0, vec![200]))
        .with("b", (I32, 7i32.to_le_bytes().to_vec()))
        .with("c", (U64, 70_000u64.to_le_bytes().to_vec()))
        .with("negative", (I32, (-1i32).to_le_bytes().to_vec()))
        .with("large", (U64, (1u64 << 40).to_le_bytes().to_vec()))
        .with("double", (12, 0.5f64.to_le_bytes().to_vec()))
        .with("bytes", array(1, 3, &[1, 255, 3]));
    let gguf = parse(&file).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(["a", "b", "c"].map(|key| metadata.u32(key).unwrap()), [200, 7, 70_000]);
    assert_eq!(metadata.usize("large").unwrap(), 1 << 40);
    assert!((metadata.f32("double").unwrap() - 0.5).abs() < 1e-9);
    assert_eq!(metadata.i32s("bytes").unwrap().collect::<Vec<_>>(), [1, -1, 3]);
    for key in ["negative", "large"] {
        assert_eq!(metadata.u32(key).unwrap_err().kind(), ErrorKind::Malformed, "{key}");
    }
    assert_eq!(metadata.get("double").unwrap().scalar(), Some(Scalar::Float(0.5)));
    assert_eq!(metadata.get("bytes").unwrap().elements(), Some((Kind::I8, 3)));
}

#[test]
fn a_missing_key_and_a_wrong_type_are_errors_that_name_the_key() {
    let gguf = parse(&GgufFile::llama()).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.opt_u32("no.such").unwrap(), None);
    assert!(metadata.opt_strings("no.such").unwrap().is_none());
    let missing = metadata.u32("no.such").unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Missing);
    assert_eq!(missing.to_string(), "m.gguf: has no metadata \"no.such\"");
    let wrong = [
        metadata.opt_u32("general.architecture").unwrap_err(),
        metadata.opt_str("llama.block_count").unwrap_err(),
        metadata.opt_f32("llama.block_count").unwrap_err(),
        metadata.opt_bool("llama.block_count").unwrap_err(),
        metadata.opt_strings("tokenizer.ggml.scores").err().unwrap(),
        metadata.opt_f32s("tokenizer.ggml.tokens").err().unwrap(),
        metadata.opt_i32s("tokenizer.ggml.scores").err().unwrap(),
    ];
    for error in wrong {
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("metadata \""), "{error}");
    }
}

#[test]
fn tensors_read_as_they_were_written() {
    let gguf = parse(&GgufFile::llama()).unwrap();
    let names: Vec<&str> = gguf.tensors().map(|info| info.name()).collect();
    assert_eq!(names, ["token_embd.weight", "output_norm.weight"]);
    let info = gguf.tensor_info("token_embd.weight").unwrap();
    assert_eq!((info.dims(), info.encoding().name(), info.byte_len()), (&[32, 4][..], "Q4_0", 72));
    let weight = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!((weight.rows(), weight.cols()), (4, 32));
    // 0x2c00 is 1/16; the codes are 3 and 9.
    let expected = [[-5.0 / 16.0; 16], [1.0 / 16.0; 16]].concat();
    assert_eq!(row(&gguf, "token_embd.weight", 3), expected);
    assert_eq!(row(&gguf, "output_norm.weight", 0), [0.5; 32]);
    let missing = gguf.tensor("no.such").unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Missing);
}

#[test]
fn plain_types_and_more_dimensions_are_rows() {
    let file = GgufFile::llama().but(|f| {
        f.entries.truncate(9);
        f.tensors = vec![
            GgufTensor::new("half", 1, &[2, 2, 2], [0x00, 0x3c].repeat(8)),
            GgufTensor::new("brain", 30, &[2, 1], vec![0x80, 0x3f, 0x00, 0xc0]),
            GgufTensor::new("scalar", 0, &[1], f32s(&[-3.0])),
        ];
    });
    let gguf = parse(&file).unwrap();
    assert_eq!((gguf.tensor("half").unwrap().rows(), row(&gguf, "half", 3)), (4, vec![1.0, 1.0]));
    assert_eq!(row(&gguf, "brain", 0), [1.0, -2.0]);
    assert_eq!(row(&gguf, "scalar", 0), [-3.0]);
}

#[test]
fn version_2_another_alignment_and_scales_of_zero_are_fine() {
    let v2 = GgufFile::llama().but(|f| f.version = 2);
    assert!(parse(&v2).is_ok());
    let aligned = GgufFile::llama().with("general.alignment", u32v(32));
    assert!(parse(&aligned).is_ok());
    for scale in [0x0000, 0x8000, 0x0001] {
        let file = GgufFile::llama().but(|f| f.tensors[0].data = q4_0(4, scale));
        assert!(parse(&file).unwrap().tensor("token_embd.weight").is_ok(), "{scale:#x}");
    }
}

#[test]
fn a_vocabulary_without_tensors_is_fine() {
    let file = GgufFile::llama().but(|f| f.tensors.clear());
    assert_eq!(parse(&file).unwrap().tensors().len(), 0);
    let padded = [file.header(), vec![0; 31]].concat();
    let end = file.header().len().next_multiple_of(32);
    let gguf = Gguf::parse("v", padded[..end].to_vec().into(), &Limits::default());
    assert!(gguf.is_ok());
    assert!(Gguf::parse("v", file.header().into(), &Limits::default()).is_ok());
}

#[test]
fn heads_that_differ_by_layer_are_left_to_the_architecture() {
    let file = GgufFile::llama()
        .with("llama.attention.head_count_kv", array(I32, 2, &[0; 8]))
        .with("llama.feed_forward_length", array(I32, 2, &[0; 8]));
    assert!(parse(&file).is_ok());
}

#[test]
fn the_files_of_a_split_model_are_one_model() {
    let part = |number: u16| {
        let at = usize::from(number);
        GgufFile::llama()
            .with("split.no", (2, number.to_le_bytes().to_vec()))
            .with("split.count", (2, 2u16.to_le_bytes().to_vec()))
            .with("split.tensors.count", u32v(2))
            .with("general.name", strv(&number.to_string()))
            .but(|f| f.tensors = vec![f.tensors[at].clone()])
            .bytes()
    };
    let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    let source = MemorySource::new("m").with(first, part(0)).with(second, part(1));
    for file in [None, Some(first), Some(second)] {
        let Checkpoint::Gguf(gguf) = Checkpoint::open(&source, file, &Limits::default()).unwrap()
        else {
            panic!("not a GGUF model")
        };
        assert_eq!(gguf.metadata().str("general.name").unwrap(), "0");
        assert_eq!(row(&gguf, "output_norm.weight", 0), [0.5; 32]);
        assert_eq!(gguf.tensor("token_embd.weight").unwrap().rows(), 4);
    }
}

#[test]
fn arrays_are_read_where_they_lie() {
    let texts: Vec<u8> =
        (0..1000u32).flat_map(|i| crate::build::string(&i.to_le_bytes())).collect();
    let numbers: Vec<u8> = (0..1000).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let file = GgufFile::llama()
        .with("texts", array(STR, 100, &texts[..1200]))
        .with("numbers", array(F32, 1000, &numbers))
        .with("one", f32v(1.0));
    let gguf = parse(&file).unwrap();
    let value = gguf.metadata().get("numbers").unwrap();
    assert_eq!(value.iter().nth(999), Some(Scalar::Float(999.0)));
    assert_eq!(value.iter().count(), 1000);
    assert_eq!(gguf.metadata().strings("texts").unwrap().count(), 100);
    assert_eq!(gguf.metadata().get("one").unwrap().iter().count(), 0);
}
