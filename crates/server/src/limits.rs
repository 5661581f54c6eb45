//! Every bound of the server, in one table.

use std::time::Duration;

/// How much of anything the server accepts, holds or waits for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's head, and the number of its headers.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Open connections; more wait to be accepted.
    pub connections: usize,
    /// From a connection's first byte, or the end of its last answer, to the end of a head.
    pub head_time: Duration,
    /// From the end of a head to the end of its body.
    pub body_time: Duration,
    /// A client that takes nothing for so long is dropped, and what it asked for is cancelled.
    pub write_stall: Duration,
    /// From a request to the last token of its answer.
    pub answer_time: Duration,
    /// How long a request waits for its model to be loaded, and for room to load it.
    pub load_time: Duration,
    /// From the end of a model's loading until it is loaded again if it is lost.
    pub reload_pause: Duration,
    /// Answers that one model works on or has waiting; more get 429.
    pub queue: usize,
    /// What 429 and 503 tell the client to wait.
    pub retry_after: Duration,
    /// Choices per prompt (`n`).
    pub choices: usize,
    /// Prompts per request.
    pub prompts: usize,
    /// Texts to embed per request.
    pub inputs: usize,
    /// Of these, texts that are embedded at once.
    pub embedding: usize,
    /// Stop strings per request.
    pub stops: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Most likely tokens that are listed per token.
    pub top_logprobs: usize,
    /// Tokens with a bias per request.
    pub logit_bias: usize,
    /// Prompts that are tokenised, and grammars that are compiled, at once.
    pub preparing: usize,
    /// Models in memory.
    pub models: usize,
    /// Bytes that they may take together; `None`: as much as there is.
    pub memory: Option<u64>,
    /// Longest sequence that a client may have a model loaded with, in tokens.
    pub context: usize,
    /// Pieces of an answer that wait for a slow client.
    pub pieces: usize,
    /// From the request to stop until what still runs is cancelled.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            head_bytes: 32 << 10,
            headers: 100,
            connections: 1024,
            head_time: Duration::from_secs(60),
            body_time: Duration::from_secs(60),
            write_stall: Duration::from_secs(60),
            answer_time: Duration::from_secs(3600),
            load_time: Duration::from_secs(600),
            reload_pause: Duration::from_secs(5),
            queue: 256,
            retry_after: Duration::from_secs(1),
            choices: 8,
            prompts: 128,
            inputs: 2048,
            embedding: 16,
            stops: 16,
            stop_bytes: 256,
            top_logprobs: 20,
            logit_bias: 1024,
            preparing: 16,
            models: 4,
            memory: None,
            context: 1 << 20,
            pieces: 64,
            grace: Duration::from_secs(30),
        }
    }
}
