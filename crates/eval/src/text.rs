//! A text to read when none is given.

/// Ordinary modern English prose on a dozen subjects, a little over 3,000 tokens. Written for this
/// project; its provenance stands beside it in `text/README.md`.
pub const ENGLISH: &str = include_str!("../text/english.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_plain_text_of_a_useful_length() {
        assert!(ENGLISH.len() > 13_000, "{} bytes", ENGLISH.len());
        assert!(ENGLISH.is_ascii());
        assert!(ENGLISH.lines().filter(|line| line.is_empty()).count() >= 12);
        assert!(!ENGLISH.contains('\r') && !ENGLISH.contains('\t') && !ENGLISH.contains("  "));
    }
}
