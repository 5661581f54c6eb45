//! Numbers that end. A number of JSON may have as many digits as it likes, and a model that has
//! begun to write them may not stop before its answer is full.

/// Characters of the longest number that any 64-bit float needs, as `-2.2250738585072014e-308`.
const LONGEST: usize = 24;

/// How far a text in JSON is into a number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    in_string: bool,
    escaped: bool,
    /// Characters of the number at the end of the text.
    length: usize,
}

impl Numbers {
    /// Takes more of the text.
    pub(crate) fn push(&mut self, text: &[u8]) {
        for &byte in text {
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
            } else {
                self.in_string = byte == b'"';
                self.length = if belongs(byte) { self.length + 1 } else { 0 };
            }
        }
    }

    /// Whether the number at the end is as long as any has to be.
    pub(crate) fn is_long(&self) -> bool {
        !self.in_string && self.length >= LONGEST
    }
}

/// Whether this text would make a number before it longer.
pub(crate) fn goes_on(text: &[u8]) -> bool {
    text.first().copied().is_some_and(belongs)
}

fn belongs(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_outside_of_texts_become_long() {
        let digits = "7".repeat(LONGEST);
        for (text, expected) in [
            (digits.clone(), true),
            (digits[1..].to_owned(), false),
            (format!("{{\"a\": -1.5e{digits}"), true),
            (format!("[\"{digits}"), false),
            (format!("[\"\\\"\", {digits}"), true),
            (format!("[\"\\\\\", {digits}"), true),
            (format!("[{digits},"), false),
            (format!("[{digits}, 1"), false),
        ] {
            let mut whole = Numbers::default();
            whole.push(text.as_bytes());
            assert_eq!(whole.is_long(), expected, "{text}");
            let mut pieces = Numbers::default();
            text.as_bytes().iter().for_each(|byte| pieces.push(&[*byte]));
            assert_eq!(pieces.is_long(), expected, "{text} by byte");
        }
        assert!(goes_on(b"7,") && goes_on(b"e") && !goes_on(b",7") && !goes_on(b""));
    }
}
