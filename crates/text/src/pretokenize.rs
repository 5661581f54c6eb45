//! How GGUF files name the ways to cut text into words before byte-pair merging.
//!
//! A GGUF file says `tokenizer.ggml.pre = "qwen2"` and leaves the rest to the reader. The regexes
//! are those of the models' own `tokenizer.json`; which name means which, and the defaults that
//! come with it, follow llama.cpp.

use crate::error::{Error, Result};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{NormalizerWrapper, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pre {
    /// Applied one after the other; each cuts the pieces that the one before left.
    pub(crate) regexes: &'static [&'static str],
    /// A word that is a token is taken as it is, without merging.
    pub(crate) ignore_merges: bool,
    /// BOS is put before a text unless the file says otherwise.
    pub(crate) add_bos: bool,
    /// Text is brought into normal form C first.
    pub(crate) nfc: bool,
    /// Merges work on bytes (GPT-2); otherwise on characters with `▁` for the space.
    pub(crate) byte_level: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The letters of cased scripts, as DeepSeek's first tokenizer lists them; as numbers, because
/// some look like others.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}",
    r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}",
    r"\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}",
    r"\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}",
    r"\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}",
    r"\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-",
    r"\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}",
    r"\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}",
    r"\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}",
    r"\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}",
    r"\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}",
    r"\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}",
    r"\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}",
    r"\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-",
    r"\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+",
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

const BYTES: Pre =
    Pre { regexes: &[GPT2], ignore_merges: false, add_bos: false, nfc: false, byte_level: true };

/// The names, each with what it stands for.
const TABLE: &[(&[&str], Pre)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
        BYTES,
    ),
    (&["mpt", "olmo"], Pre { nfc: true, ..BYTES }),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        Pre { regexes: &[LLAMA3], ignore_merges: true, add_bos: true, ..BYTES },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], Pre { regexes: &[LLAMA3], ..BYTES }),
    (&["glm4", "glm5"], Pre { regexes: &[LLAMA3], ignore_merges: true, ..BYTES }),
    (&["qwen2"], Pre { regexes: &[QWEN2], nfc: true, ..BYTES }),
    (
        &["deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"],
        Pre { regexes: &[QWEN2], ..BYTES },
    ),
    (&["solar-open", "grok-2"], Pre { regexes: &[QWEN2], ..BYTES }),
    (&["qwen35"], Pre { regexes: &[QWEN35], ..BYTES }),
    (
        &["deepseek-llm"],
        Pre {
            regexes: &[
                r"[\r\n]",
                DEEPSEEK_LETTERS,
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                r"[一-龥ࠀ-一가-퟿]+",
                r"\p{N}+",
            ],
            ..BYTES
        },
    ),
    (
        &["deepseek-coder"],
        Pre {
            regexes: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
            ..BYTES
        },
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        Pre { regexes: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3], ..BYTES },
    ),
    (&["falcon"], Pre { regexes: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], ..BYTES }),
    (
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        Pre { regexes: &[r"\p{N}", GPT2], ..BYTES },
    ),
    (&["poro-chat", "bloom", "gpt3-finnish"], Pre { regexes: &[BLOOM], ..BYTES }),
    (&["viking"], Pre { regexes: &[BLOOM, r"\p{N}"], ..BYTES }),
    (&["tekken"], Pre { regexes: &[TEKKEN], ignore_merges: true, add_bos: true, ..BYTES }),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], Pre { regexes: &[GPT4O], ..BYTES }),
    (&["tiny_aya", "cohere2moe"], Pre { regexes: &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O], ..BYTES }),
    (&["minicpm5"], Pre { regexes: &[r"\p{N}{1,3}", QWEN2], ignore_merges: true, ..BYTES }),
    (
        &["gemma4", "sarvam-moe"],
        Pre { regexes: &[r"[^\n]+|[\n]+"], add_bos: true, byte_level: false, ..BYTES },
    ),
    (
        &["", "default"],
        Pre { regexes: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..BYTES },
    ),
];

/// Looks a name up.
///
/// # Errors
/// [`Error::Unsupported`] for a name that is not in the table: cutting text in another way than
/// the model was trained with gives wrong answers silently.
pub(crate) fn named(name: &str) -> Result<Pre> {
    let found = TABLE.iter().find(|(names, _)| names.contains(&name));
    found.map(|(_, pre)| *pre).ok_or_else(|| {
        Error::unsupported(
            format!("pre-tokenizer `{name}` (tokenizer.ggml.pre)"),
            "use the model's Hugging Face folder with its tokenizer.json",
        )
    })
}

impl Pre {
    /// The pre-tokenizer: every regex cuts, then bytes become characters.
    pub(crate) fn build(&self) -> Result<PreTokenizerWrapper> {
        let mut steps = Vec::with_capacity(self.regexes.len() + 1);
        for regex in self.regexes {
            let pattern = SplitPattern::Regex((*regex).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|e| Error::invalid("pre-tokenizer regex", e))?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        if self.byte_level {
            steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
        }
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }

    /// The normalizer that comes before it, if any.
    pub(crate) fn normalizer(&self) -> Result<Option<NormalizerWrapper>> {
        if !self.byte_level {
            let replace =
                Replace::new(" ", "▁").map_err(|e| Error::invalid("space normalizer", e))?;
            return Ok(Some(NormalizerWrapper::Replace(replace)));
        }
        Ok(self.nfc.then_some(NormalizerWrapper::NFC(NFC)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    #[test]
    fn every_name_is_listed_once_and_builds() {
        let mut names: Vec<&str> =
            TABLE.iter().flat_map(|(names, _)| names.iter()).copied().collect();
        let total = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), total);
        for (_, pre) in TABLE {
            pre.build().unwrap();
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = named("some-new-one").unwrap_err().to_string();
        assert!(error.contains("`some-new-one`") && error.contains("tokenizer.json"), "{error}");
    }

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        named(name).unwrap().build().unwrap().pre_tokenize(&mut split).unwrap();
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).collect()
    }

    #[test]
    fn digits_are_cut_as_each_family_cuts_them() {
        let cases: &[(&str, &[&str])] = &[
            ("gpt-2", &["a", "Ġ12345"]),
            ("llama-bpe", &["a", "Ġ", "123", "45"]),
            ("qwen2", &["a", "Ġ", "1", "2", "3", "4", "5"]),
            ("smollm", &["a", "Ġ", "1", "2", "3", "4", "5"]),
            ("tekken", &["a", "Ġ", "1", "2", "3", "4", "5"]),
        ];
        for (name, expected) in cases {
            assert_eq!(words(name, "a 12345"), *expected, "{name}");
        }
    }
}
