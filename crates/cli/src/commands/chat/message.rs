//! What a typed message is: one line, lines that end in a backslash and the one after them, or a
//! block between `"""` and `"""`.

/// Opens and closes a block.
const QUOTES: &str = "\"\"\"";

/// Whether nothing more belongs to this message.
pub(crate) fn is_complete(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(block) => block.contains(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// The message without the marks that hold its lines together.
pub(crate) fn unfold(text: &str) -> String {
    let Some(block) = text.trim_start().strip_prefix(QUOTES) else {
        let joined = text.replace("\\\n", "\n");
        return joined.strip_suffix('\\').unwrap_or(&joined).trim().to_owned();
    };
    let (inside, after) = block.split_once(QUOTES).unwrap_or((block, ""));
    let inside = inside.strip_prefix('\n').unwrap_or(inside);
    let inside = inside.strip_suffix('\n').unwrap_or(inside);
    match after.trim() {
        "" => inside.to_owned(),
        after => format!("{inside}\n{after}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_when_a_message_is_complete() {
        for (text, complete) in [
            ("hello", true),
            ("", true),
            ("one\\", false),
            ("one\\\ntwo", true),
            ("\"\"\"", false),
            ("\"\"\"one\ntwo", false),
            ("\"\"\"one\\\n\"\"\"", true),
            ("say \"\"\"", true),
        ] {
            assert_eq!(is_complete(text), complete, "{text:?}");
        }
    }

    #[test]
    fn unfolds_lines_and_blocks() {
        for (text, message) in [
            (" hello ", "hello"),
            ("one\\\ntwo\\\nthree", "one\ntwo\nthree"),
            ("one\\", "one"),
            ("\"\"\"\none\n  two\n\"\"\"", "one\n  two"),
            ("\"\"\"one\"\"\" and more", "one\nand more"),
            ("\"\"\"never closed", "never closed"),
            ("pasted\nlines", "pasted\nlines"),
        ] {
            assert_eq!(unfold(text), message, "{text:?}");
        }
    }
}
