//! How much of anything this crate accepts from a file or a request.

/// Bytes of a `tokenizer.json` or `tokenizer.model`.
pub const TOKENIZER_BYTES: usize = 64 << 20;
/// Tokens of a vocabulary.
pub const VOCAB: usize = 2_000_000;
/// Highest token id: ids are array indices here, so a sparse vocabulary costs memory.
pub const TOKEN_ID: usize = 4_000_000;
/// Bytes of one token that is matched in text before tokenizing (special or added).
pub const ADDED_TOKEN_BYTES: usize = 256;
/// Bytes of one pre-tokenizer regex.
pub const REGEX_BYTES: usize = 16 << 10;
/// Components in a sequence of normalizers, pre-tokenizers or decoders.
pub const COMPONENTS: usize = 64;
/// Bytes of one text to tokenize.
pub const TEXT_BYTES: usize = 64 << 20;
/// Bytes of a chat template.
pub const TEMPLATE_BYTES: usize = 256 << 10;
/// Work of one rendering: an instruction, or 64 bytes made, are one. So a template that doubles a
/// string holds at most 64 times as many bytes.
pub const TEMPLATE_FUEL: u64 = 60_000;
/// More work for every value in the messages and tools: a template looks at each several times.
pub const TEMPLATE_FUEL_PER_VALUE: u64 = 250;
/// More work for as many bytes of text in them: filters copy texts.
pub const TEMPLATE_BYTES_PER_FUEL: u64 = 4;
/// Depth of the data given to a template.
pub const TEMPLATE_DEPTH: usize = 64;
/// Depth of blocks and calls within a running template; a call of a macro counts for several.
pub const TEMPLATE_RECURSION: usize = 256;
/// Bytes of a rendered prompt.
pub const TEMPLATE_OUTPUT: usize = 8 << 20;
/// Messages of a conversation.
pub const MESSAGES: usize = 4096;
/// Tools offered in a request.
pub const TOOLS: usize = 256;
/// Bytes of a role's name.
pub const ROLE_BYTES: usize = 64;
/// Bytes of a grammar or of a JSON schema.
pub const GRAMMAR_BYTES: usize = 256 << 10;
/// Depth of a JSON schema.
pub const SCHEMA_DEPTH: usize = 64;
