//! The letters of pictures: coverage of ASCII in two faces (`font/README.md`).

/// The faces, one after the other, as `tools/chart/make_font.py` writes them.
const FILE: &[u8] = include_bytes!("../../font/dejavu.bin");
/// Characters of a face: from space to tilde.
const FIRST: u8 = b' ';
const COUNT: usize = 95;

/// A size and weight of the letters.
#[derive(Clone, Debug)]
pub(super) struct Face {
    /// Height of the letters above the baseline, in pixels.
    pub(super) ascent: i32,
    glyphs: Vec<Glyph>,
}

/// A letter. Lengths are in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glyph {
    /// To the next letter.
    pub(super) advance: i32,
    /// Right of the pen.
    pub(super) left: i32,
    /// Below the top of the line.
    pub(super) top: i32,
    /// Width of the picture.
    pub(super) width: usize,
    /// Coverage, row by row.
    pub(super) coverage: &'static [u8],
}

impl Face {
    /// The plain face and the bold one.
    pub(super) fn both() -> [Self; 2] {
        let (regular, rest) = Self::read(FILE);
        [regular, Self::read(rest).0]
    }

    fn read(bytes: &'static [u8]) -> (Self, &'static [u8]) {
        let mut at = 1;
        let glyphs = (0..COUNT)
            .map(|_| {
                let [advance, left, top, width, height] = [0, 1, 2, 3, 4].map(|i| bytes[at + i]);
                let signed = |byte: u8| i32::from(byte.cast_signed());
                let (start, area) = (at + 5, usize::from(width) * usize::from(height));
                at = start + area;
                Glyph {
                    advance: i32::from(advance),
                    left: signed(left),
                    top: signed(top),
                    width: usize::from(width),
                    coverage: &bytes[start..at],
                }
            })
            .collect();
        (Self { ascent: i32::from(bytes[0]), glyphs }, &bytes[at..])
    }

    /// The letters of a text; what the face does not have is a question mark.
    pub(super) fn glyphs(&self, text: &str) -> impl Iterator<Item = Glyph> {
        text.chars().map(|character| {
            let byte = u8::try_from(character).unwrap_or(b'?');
            let index = usize::from(byte.wrapping_sub(FIRST));
            let unknown = usize::from(b'?' - FIRST);
            self.glyphs[if index < COUNT { index } else { unknown }]
        })
    }

    /// Pixels that a text is wide.
    pub(super) fn width(&self, text: &str) -> i32 {
        self.glyphs(text).map(|glyph| glyph.advance).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_two_faces_and_nothing_else() {
        let (_, rest) = Face::read(FILE);
        assert!(Face::read(rest).1.is_empty());
        let [regular, bold] = Face::both();
        assert!(regular.ascent < bold.ascent);
        assert!(regular.width("iii") < regular.width("mmm"));
        assert_eq!(regular.width("é\u{1F600}\n"), regular.width("???"));
        for glyph in regular.glyphs("Ag|") {
            assert!(glyph.coverage.contains(&255));
            assert!(glyph.coverage.len().is_multiple_of(glyph.width));
        }
    }
}
