//! A JSON object that arrives character by character.

/// Follows an object and tells its members as they come.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// Braces and brackets that are open.
    depth: usize,
    /// In a string; whether the next character is escaped.
    string: Option<bool>,
    /// The key of the current member, as it is written.
    key: String,
    in_value: bool,
    /// Whether anything of the value but white space was there.
    begun: bool,
    /// White space that is part of the value only if more of it follows.
    space: String,
}

/// What a character brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// Nothing yet.
    Nothing,
    /// More of the current member's value.
    Value(String),
    /// The value is complete.
    ValueEnd,
    /// The value and the object are complete.
    End,
}

impl Members {
    /// The key of the current member.
    pub(super) fn key(&self) -> &str {
        self.key.trim().trim_matches('"')
    }

    /// Whether the next character is a string's.
    pub(super) fn in_string(&self) -> bool {
        self.string.is_some()
    }

    /// Takes the next character, the first of which is `{`.
    pub(super) fn push(&mut self, c: char) -> Member {
        if let Some(escaped) = self.string {
            self.string = match c {
                _ if escaped => Some(false),
                '\\' => Some(true),
                '"' => None,
                _ => Some(false),
            };
            return self.part(c);
        }
        match c {
            '"' => self.string = Some(false),
            '{' | '[' => {
                self.depth += 1;
                if self.depth == 1 {
                    return Member::Nothing;
                }
            }
            '}' | ']' if self.depth <= 1 => {
                self.depth = 0;
                self.leave();
                return Member::End;
            }
            '}' | ']' => self.depth -= 1,
            ',' if self.depth == 1 => {
                self.leave();
                self.key.clear();
                return Member::ValueEnd;
            }
            ':' if self.depth == 1 && !self.in_value => {
                (self.in_value, self.begun) = (true, false);
                return Member::Nothing;
            }
            _ => {}
        }
        self.part(c)
    }

    fn leave(&mut self) {
        self.in_value = false;
        self.space.clear();
    }

    fn part(&mut self, c: char) -> Member {
        if !self.in_value {
            self.key.push(c);
            return Member::Nothing;
        }
        if c.is_ascii_whitespace() && self.string.is_none() {
            if self.begun {
                self.space.push(c);
            }
            return Member::Nothing;
        }
        self.begun = true;
        let mut value = std::mem::take(&mut self.space);
        value.push(c);
        Member::Value(value)
    }
}
