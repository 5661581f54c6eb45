//! From logits to a token.

/// How a token is chosen. The default is greedy.
///
/// In order: logit bias, repetition, presence and frequency penalties, then (unless greedy)
/// temperature, top-k, top-p, min-p, and a draw. Ties go to the smaller id.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy: the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most likely one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that the sequence contains,
    /// prompt included; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens that the answer contains; 0: off.
    pub presence_penalty: f32,
    /// Subtracted from tokens as often as the answer contains them; 0: off.
    pub frequency_penalty: f32,
    /// Added to logits, by token id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same answer; `None`: one is drawn.
    pub seed: Option<u64>,
}
