//! Properties that hold for every text and every sequence of ids.

use crate::huggingface::tokenizer;
use proptest::prelude::*;
use std::sync::LazyLock;
use tangor_text::{Span, Specials, Tokenizer};

static ALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let kinds = ["gpt2", "llama3", "qwen2", "llama2", "llama2_normalized", "mistral", "unigram"];
    kinds.iter().map(|kind| tokenizer(kind)).collect()
});

/// Text with what makes tokenizers stumble.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        any::<String>(),
        "[a-zA-Z '\n\t0-9]{0,12}",
        Just("<s>".to_owned()),
        Just("<|eot|>".to_owned()),
        Just(" <mask> ".to_owned()),
        Just("<think>".to_owned()),
        Just("day".to_owned()),
        Just("   ".to_owned()),
        Just("e\u{301}🎉".to_owned()),
    ];
    prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

#[test]
fn tokenizers_templates_and_streams_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Tokenizer>();
    shared::<tangor_text::ChatTemplate>();
    shared::<tangor_text::DecodeStream>();
}

proptest! {
    #[test]
    fn pieces_of_a_stream_are_the_decoded_text(
        ids in prop::collection::vec(0u32..1000, 0..200),
        skip in any::<bool>(),
    ) {
        for tokenizer in ALL.iter() {
            let mut stream = tokenizer.stream(skip);
            let mut text = String::new();
            let mut bytes = Vec::new();
            for id in &ids {
                text.extend(stream.push(*id));
                if !(skip && tokenizer.is_special(*id)) {
                    bytes.extend(tokenizer.token_bytes(*id).unwrap_or_default());
                }
            }
            text.extend(stream.finish());
            prop_assert_eq!(&text, &tokenizer.decode(&ids, skip));
            // A space that encoding put in front may be missing.
            let lossy = String::from_utf8_lossy(&bytes);
            prop_assert!(lossy == text || lossy.strip_prefix(' ') == Some(&text));
            // Where other text stands before, it may not.
            let mut stream = tokenizer.stream(skip).continuing();
            let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
            text.extend(stream.finish());
            prop_assert_eq!(text, lossy);
        }
    }

    #[test]
    fn byte_level_tokenizers_lose_nothing(text in text()) {
        for kind in [0, 1] {
            let tokenizer: &Tokenizer = &ALL[kind];
            let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, false), &text);
        }
    }

    #[test]
    fn text_never_gives_special_ids(text in text()) {
        for tokenizer in ALL.iter() {
            for id in tokenizer.encode(&text, Specials::AsText).unwrap() {
                prop_assert!(!tokenizer.is_special(id) || tokenizer.unk() == Some(id));
            }
            let spans = [Span::untrusted(text.as_str())];
            prop_assert_eq!(
                tokenizer.encode_spans(&spans).unwrap(),
                tokenizer.encode(&text, Specials::AsText).unwrap()
            );
        }
    }

    #[test]
    fn joints_between_trusted_spans_cut_nothing(pieces in prop::collection::vec(text(), 0..5)) {
        let spans: Vec<Span> = pieces.iter().map(|piece| Span::trusted(piece.as_str())).collect();
        for tokenizer in ALL.iter() {
            prop_assert_eq!(
                tokenizer.encode_spans(&spans).unwrap(),
                tokenizer.encode(&pieces.concat(), Specials::Recognised).unwrap()
            );
        }
    }
}
