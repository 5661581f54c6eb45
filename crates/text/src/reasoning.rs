//! What a reasoning model thinks before it answers, apart from the answer.

/// What thinking stands between.
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Separates thinking from the answer in a text that arrives in pieces.
///
/// Only a text that begins with `<think>`, or whose prompt ended in it, has any; white space around
/// either part belongs to neither. The result does not depend on how the text is cut into pieces.
#[derive(Clone, Debug)]
pub struct Reasoning {
    state: State,
    /// Text of which it is not yet certain where it belongs.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    Thinking {
        /// Something was thought.
        begun: bool,
    },
    /// White space behind the thinking.
    Between,
    Answering,
}

/// A certain part of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thought {
    /// More of the thinking.
    pub reasoning: String,
    /// More of the answer.
    pub answer: String,
}

impl Reasoning {
    /// For the answer to a prompt of a model with this chat template; `None` if it does not think.
    #[must_use]
    pub fn of(template: &str, prompt: &str) -> Option<Self> {
        let thinks = template.contains(OPEN) || template.contains(CLOSE);
        let opened = prompt.trim_end().ends_with(OPEN);
        let state = if opened { State::Thinking { begun: false } } else { State::Start };
        thinks.then(|| Self { state, held: String::new() })
    }

    /// Whether the text so far ends amid thinking.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Thinking { .. })
    }

    /// A grammar in Lark's notation of whole texts: the rest of the thinking, where the text so far
    /// ends amid it, and then what `answer` allows, a grammar whose first rule is `start:`.
    #[must_use]
    pub fn grammar(&self, answer: &str) -> String {
        if !self.is_open() {
            return answer.to_owned();
        }
        let answer = answer.replacen("start:", "answer:", 1);
        let close = CLOSE.replace('/', "\\/");
        format!("start: thought answer\nthought[stop=/{close}\\s*/]: /(?s:.*)/\n{answer}")
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Thought {
        self.held.push_str(piece);
        let mut out = Thought::default();
        while self.step(&mut out) {}
        out
    }

    /// The rest: nothing follows.
    pub fn finish(&mut self) -> Thought {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Thinking { .. } => Thought { reasoning: rest, ..Thought::default() },
            State::Between => Thought::default(),
            State::Start | State::Answering => Thought { answer: rest, ..Thought::default() },
        }
    }

    /// Goes on by one state; `false` if that needs more text.
    fn step(&mut self, out: &mut Thought) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Thinking { begun: false };
                    return true;
                }
                let undecided = OPEN.starts_with(text);
                if !undecided {
                    self.state = State::Answering;
                }
                !undecided
            }
            State::Thinking { begun } => self.think(begun, out),
            State::Between => {
                self.held = self.held.trim_start().to_owned();
                let found = !self.held.is_empty();
                if found {
                    self.state = State::Answering;
                }
                found
            }
            State::Answering => {
                out.answer.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn think(&mut self, begun: bool, out: &mut Thought) -> bool {
        if !begun {
            self.held = self.held.trim_start().to_owned();
        }
        if let Some((thought, rest)) = self.held.split_once(CLOSE) {
            out.reasoning.push_str(thought.trim_end());
            self.held = rest.to_owned();
            self.state = State::Between;
            return true;
        }
        // White space may turn out to stand before the end, which may have begun.
        let begins = |at: &usize| CLOSE.starts_with(&self.held[*at..]);
        let starts = self.held.char_indices().map(|(at, _)| at);
        let end = starts.clone().find(begins).unwrap_or(self.held.len());
        let certain = self.held[..end].trim_end().len();
        let rest = self.held.split_off(certain);
        out.reasoning.push_str(&self.held);
        self.state = State::Thinking { begun: begun || certain > 0 };
        self.held = rest;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<'a>(prompt: &str, pieces: impl Iterator<Item = &'a str>) -> (String, String) {
        let mut split = Reasoning::of("{{ '<think>' }}", prompt).unwrap();
        let (mut reasoning, mut answer) = (String::new(), String::new());
        let mut take = |thought: Thought| {
            reasoning.push_str(&thought.reasoning);
            answer.push_str(&thought.answer);
        };
        pieces.for_each(|piece| take(split.push(piece)));
        take(split.finish());
        (reasoning, answer)
    }

    #[test]
    fn thinking_and_answer_are_told_apart_however_the_text_is_cut() {
        for (prompt, text, reasoning, answer) in [
            ("", "<think>\nhm, 1 < 2\n</think>\n\nYes.", "hm, 1 < 2", "Yes."),
            ("", "\n<think></think> Yes. </think>", "", "Yes. </think>"),
            ("", "No <think>a</think>", "", "No <think>a</think>"),
            ("", "<thin", "", "<thin"),
            ("", "<think>never ends </thi", "never ends </thi", ""),
            ("a<think>\n", "so\n</think>\nYes", "so", "Yes"),
            ("a<think>", " a  b </think>", "a  b", ""),
        ] {
            let expected = (reasoning.to_owned(), answer.to_owned());
            let whole = run(prompt, std::iter::once(text));
            assert_eq!((whole.0.trim_end(), whole.1.as_str()), (reasoning, answer), "{text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let by_char = run(prompt, chars.iter().map(String::as_str));
            assert_eq!(by_char, expected, "{text} by character");
        }
    }

    #[test]
    fn a_model_whose_template_knows_no_thinking_has_none() {
        assert!(Reasoning::of("{{ messages }}", "<think>").is_none());
    }
}
