//! Refuses regexes that can take exponential time.
//!
//! `fancy-regex` runs in linear time as long as a pattern has no look-around or back-reference. A
//! branch that has one is matched by backtracking; if such a branch also repeats a repetition, as
//! in `(a+)+(?!b)`, the number of ways to match doubles with every character. Real pre-tokenizers
//! have look-arounds only in branches like `\s+(?!\S)`.

/// Whether some top-level branch of the pattern repeats a repetition beside something that needs
/// backtracking.
pub(crate) fn may_explode(pattern: &str) -> bool {
    let mut branch = Branch::default();
    let mut chars = pattern.chars().peekable();
    let mut in_class = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let escaped = chars.next();
                if in_class == 0 && escaped.is_some_and(|e| matches!(e, '1'..='9' | 'k' | 'g')) {
                    branch.backtracks = true;
                }
                branch.after_atom(false);
            }
            '[' => {
                in_class += 1;
                if chars.peek() == Some(&'^') {
                    chars.next();
                }
                // A bracket that stands first is the character.
                if chars.peek() == Some(&']') {
                    chars.next();
                }
            }
            ']' if in_class > 0 => {
                in_class -= 1;
                branch.after_atom(false);
            }
            _ if in_class > 0 => {}
            '(' => {
                let look: String = chars.clone().take(3).collect();
                let around = ["?=", "?!", "?<=", "?<!", "?>"];
                if around.iter().any(|a| look.starts_with(a)) {
                    branch.backtracks = true;
                }
                branch.open.push(false);
            }
            ')' => {
                let repeats = branch.open.pop().unwrap_or(false);
                if repeats {
                    branch.mark_repeats();
                }
                branch.after_atom(repeats);
            }
            '*' | '+' => branch.repeat(),
            '{' => {
                let bounds: String = chars.clone().take_while(|c| *c != '}').collect();
                let is_bounds = bounds.chars().all(|c| c.is_ascii_digit() || c == ',');
                if is_bounds && bounds.ends_with(',') {
                    branch.repeat();
                }
            }
            '|' if branch.open.is_empty() => {
                if branch.explodes() {
                    return true;
                }
                branch = Branch::default();
            }
            // Alternatives that overlap are as many ways to match as a repetition.
            '|' => branch.mark_repeats(),
            _ => branch.after_atom(false),
        }
    }
    branch.explodes()
}

/// What was seen of one top-level branch.
#[derive(Default)]
struct Branch {
    /// For each open group: whether something in it repeats without bound.
    open: Vec<bool>,
    /// The item just read repeats something within it.
    last_repeats: bool,
    nested: bool,
    backtracks: bool,
}

impl Branch {
    fn after_atom(&mut self, repeats: bool) {
        self.last_repeats = repeats;
    }

    fn mark_repeats(&mut self) {
        if let Some(group) = self.open.last_mut() {
            *group = true;
        }
    }

    fn repeat(&mut self) {
        self.nested |= self.last_repeats;
        self.mark_repeats();
    }

    fn explodes(&self) -> bool {
        self.nested && self.backtracks
    }
}

#[cfg(test)]
mod tests {
    use super::may_explode;

    #[test]
    fn tells_exploding_regexes_from_those_of_models() {
        let bad = [
            r"(a+)+(?!b)",
            r"(?:x|(?:[a-z]*b?)*)(?=c)",
            r"((a+)\s)*\1",
            r"a|(b{2,})+(?<!c)",
            r"(?:(?:a+)?b?)+(?!x)",
            r"(?:a|a)*(?!b)",
        ];
        for regex in bad {
            assert!(may_explode(regex), "{regex}");
        }
        let good = [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|\s+(?!\S)|\s+",
            r"\d{1,3}(?=(?:\d{3})*\b)",
            r"(?=(\d{3})+(?!\d))",
            r"[()*+]+(?!x)",
            r"\(+\)+(?!x)",
        ];
        for regex in good {
            assert!(!may_explode(regex), "{regex}");
        }
    }
}
