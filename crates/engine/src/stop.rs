//! Stop strings across the borders of tokens.

/// Watches a text that arrives in pieces for the first stop string that becomes complete.
///
/// The result does not depend on how the text is cut into pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl StopMatcher {
    /// Watches for `stops`; empty strings among them never match.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Takes the next piece; returns the text that is certain not to belong to a stop string, and
    /// the stop string that ended the text, if one did.
    pub(crate) fn push(&mut self, piece: &str) -> (String, Option<String>) {
        if self.stops.is_empty() {
            return (piece.to_owned(), None);
        }
        self.held.push_str(piece);
        // The match that ends first; of those that end together, the longest.
        let matches = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = matches.min_by_key(|(end, start, _)| (*end, *start)) {
            let stop = stop.clone();
            self.held.truncate(start);
            return (self.finish(), Some(stop));
        }
        let certain = self.held.len() - self.possible();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// Bytes at the end of the held text that may be the beginning of a stop string.
    fn possible(&self) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = self.held.char_indices().map(|(at, _)| at).filter(|&at| at >= from);
        let mut tails = starts.map(|at| &self.held[at..]);
        let begins = |tail: &&str| self.stops.iter().any(|stop| stop.starts_with(*tail));
        tails.find(begins).map_or(0, str::len)
    }

    /// The text that was held back: nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run<'a>(stops: &[&str], pieces: impl Iterator<Item = &'a str>) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(ToString::to_string).collect());
        let mut text = String::new();
        for piece in pieces {
            let (certain, stop) = matcher.push(piece);
            text.push_str(&certain);
            if stop.is_some() {
                return (text, stop);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        for (stops, text, expected, found) in [
            (&["\n\n"][..], "one\ntwo\n\nthree", "one\ntwo", Some("\n\n")),
            (&["</s>"], "a < b </ s </s>", "a < b </ s ", Some("</s>")),
            (&["abcd", "bc"], "xabcd", "xa", Some("bc")),
            (&["b", "ab"], "xab", "x", Some("ab")),
            (&["aab"], "aaab", "a", Some("aab")),
            (&["ende"], "das Ende en", "das Ende en", None),
            (&[""], "anything", "anything", None),
            (&["é!"], "caféé!", "café", Some("é!")),
        ] {
            let expected = (expected.to_owned(), found.map(str::to_owned));
            assert_eq!(run(stops, std::iter::once(text)), expected, "{text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(run(stops, chars.iter().map(String::as_str)), expected, "{text} by char");
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["STOP".into()]);
        assert_eq!(matcher.push("go S"), ("go ".into(), None));
        assert_eq!(matcher.push("TO"), (String::new(), None));
        assert_eq!(matcher.push("MS"), ("STOM".into(), None));
        assert_eq!(matcher.finish(), "S");
    }

    proptest! {
        #[test]
        fn the_cut_into_pieces_does_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0_usize..25, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut borders: Vec<usize> =
                cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces = borders.windows(2).map(|w| &text[w[0]..w[1]]);
            prop_assert_eq!(run(&stops, pieces), run(&stops, std::iter::once(&*text)));
        }
    }
}
