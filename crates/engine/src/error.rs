//! What can go wrong between a request and its last token.

use tangor_device::DeviceError;

/// An error of loading a model or of one request.
///
/// Cheap to clone: one failure may concern several sequences.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The request has no tokens at all.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Prompt and answer share the context.
    #[error(
        "the prompt has {tokens} tokens and the context holds {context}: \
         shorten it, or load the model with a longer context"
    )]
    PromptTooLong {
        /// Tokens of the prompt, or of the whole sequence after an append.
        tokens: usize,
        /// Longest sequence, prompt and answer.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A parameter outside its range.
    #[error("{field} is {value} and must be {allowed}")]
    Parameter {
        /// Name of the parameter.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// As many sequences as the model takes are alive already.
    #[error("the model already serves {limit} sequences: try again later")]
    Busy {
        /// [`LoadOptions::max_alive`](crate::LoadOptions::max_alive).
        limit: usize,
    },
    /// A sequence cannot be shortened to more than it has.
    #[error("cannot rewind to {to} tokens: the sequence has {tokens}")]
    Rewind {
        /// Length asked for.
        to: usize,
        /// Length there is.
        tokens: usize,
    },
    /// A session was asked for a token before it was given any.
    #[error("the session has no tokens: append some, or set logits, before generating")]
    NoLogits,
    /// Logits of the wrong length.
    #[error("{found} logits for a vocabulary of {vocab}")]
    LogitsLength {
        /// Logits that were given.
        found: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The model computed no logit that is a number.
    #[error("the model's output is not numbers: its file may be damaged")]
    NotNumbers,
    /// What the answer was to follow could not be followed.
    #[error("the answer cannot be kept to what was asked for: {0}; ask for something simpler")]
    Constraint(String),
    /// The devices that the model runs on hand out no hidden states.
    #[error(
        "this model makes no embeddings where it runs: its graph has no output head to stop at, or \
         an NPU runs all of it; load it on the CPU or a GPU"
    )]
    NoEmbeddings,
    /// The checkpoint cannot be turned into a graph.
    #[error("{0}")]
    Import(String),
    /// The checkpoint's tokenizer or chat template cannot be used.
    #[error("{0}")]
    Text(String),
    /// A model cannot propose tokens to another one.
    #[error("the draft model has another vocabulary: {0}; choose one of the same family")]
    DraftVocabulary(String),
    /// No plan fits the devices and limits.
    #[error(transparent)]
    Plan(#[from] tangor_plan::PlanError),
    /// A device refused or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A step of the computation panicked: a defect of this program.
    #[error("internal error while computing: {0}")]
    Panicked(String),
    /// The model cannot compute any more; load it again.
    #[error("the model was lost and must be loaded again: {0}")]
    Lost(String),
    /// The operating system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}
