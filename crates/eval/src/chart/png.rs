//! Marks as PNG: painted at two pixels to a point, then written with zlib (RFC 2083).

use super::font::Face;
use super::{BLACK, Colour, LIMIT, Mark, Style, WIDTH};
use flate2::{Compression, Crc, write::ZlibEncoder};
use std::io::Write;

/// Pixels to a point.
const SCALE: f64 = 2.0;
/// Half the thickness of whiskers and of limits, in points.
const WHISKER: f64 = 0.75;
const HAIR: f64 = 0.5;
/// A dash and the gap behind it, in points.
const DASH: (f64, f64) = (4.0, 3.0);

/// A picture being painted: rows of red, green and blue.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

/// The picture as a file.
pub(super) fn write(marks: &[Mark], height: f64) -> Vec<u8> {
    let pixels = |points: f64| (points * SCALE).ceil() as usize;
    let mut canvas = Canvas::new(pixels(WIDTH), pixels(height));
    let faces = Face::both();
    for mark in marks {
        canvas.paint(mark, &faces);
    }
    canvas.file()
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[255; 3]; width * height] }
    }

    fn paint(&mut self, mark: &Mark, [regular, bold]: &[Face; 2]) {
        match mark {
            Mark::Bar([x, y, width, height], colour) => {
                self.fill([*x, *y, x + width, y + height], *colour);
            }
            Mark::Whisker([from, to, y]) => {
                self.fill([*from, y - WHISKER, *to, y + WHISKER], BLACK);
            }
            Mark::Limit([x, top, bottom]) => {
                let mut y = *top;
                while y < *bottom {
                    let end = (y + DASH.0).min(*bottom);
                    self.fill([x - HAIR, y, x + HAIR, end], LIMIT);
                    y += DASH.0 + DASH.1;
                }
            }
            Mark::Text { x, y, style, content } => {
                let face = if *style == Style::Title { bold } else { regular };
                let colour = if *style == Style::Limit { LIMIT } else { BLACK };
                let ends = matches!(style, Style::Ends | Style::Limit);
                let back = if ends { face.width(content) } else { 0 };
                let pen = (x * SCALE).round() as i32 - back;
                self.text((pen, (y * SCALE).round() as i32), face, content, colour);
            }
        }
    }

    /// Fills a rectangle, given by left, top, right and bottom in points; what covers a part of a
    /// pixel colours it in part.
    fn fill(&mut self, edges: [f64; 4], colour: Colour) {
        let [left, top, right, bottom] = edges.map(|edge| (edge * SCALE).max(0.0));
        let covered = |from: f64, to: f64, pixel: usize| {
            let pixel = pixel as f64;
            (to.min(pixel + 1.0) - from.max(pixel)).clamp(0.0, 1.0)
        };
        for y in top as usize..(bottom.ceil() as usize).min(self.height) {
            for x in left as usize..(right.ceil() as usize).min(self.width) {
                let share = covered(left, right, x) * covered(top, bottom, y);
                self.blend((x as i32, y as i32), colour, (share * 255.0).round() as u8);
            }
        }
    }

    /// Writes from the pen, which stands on the baseline.
    fn text(&mut self, (mut x, baseline): (i32, i32), face: &Face, text: &str, colour: Colour) {
        for glyph in face.glyphs(text) {
            let (left, top) = (x + glyph.left, baseline - face.ascent + glyph.top);
            for (row, line) in (0..).zip(glyph.coverage.chunks_exact(glyph.width.max(1))) {
                for (column, &coverage) in (0..).zip(line) {
                    self.blend((left + column, top + row), colour, coverage);
                }
            }
            x += glyph.advance;
        }
    }

    /// Colours a pixel in part; what lies outside is left out.
    fn blend(&mut self, (x, y): (i32, i32), colour: Colour, share: u8) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        if x >= self.width || y >= self.height {
            return;
        }
        let [_, red, green, blue] = colour.0.to_be_bytes();
        let share = u32::from(share);
        for (old, new) in self.pixels[y * self.width + x].iter_mut().zip([red, green, blue]) {
            let mixed = u32::from(*old) * (255 - share) + u32::from(new) * share;
            *old = ((mixed + 127) / 255) as u8;
        }
    }

    /// Signature, header, one run of compressed rows without filters, end.
    fn file(&self) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let size = [self.width, self.height].map(|size| (size as u32).to_be_bytes());
        // 8 bits of red, green and blue; the usual compression and filters; not interlaced.
        chunk(&mut file, b"IHDR", &[size.as_flattened(), &[8, 2, 0, 0, 0]].concat());
        let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
        for row in self.pixels.chunks_exact(self.width) {
            // Writing to a vector cannot fail.
            let _ = rows.write_all(&[0]).and_then(|()| rows.write_all(row.as_flattened()));
        }
        chunk(&mut file, b"IDAT", &rows.finish().unwrap_or_default());
        chunk(&mut file, b"IEND", &[]);
        file
    }
}

/// Length, kind, data, checksum.
fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    let mut checksum = Crc::new();
    checksum.update(kind);
    checksum.update(data);
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(data);
    file.extend(checksum.sum().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::tests::{contender, decode};
    use super::*;
    use flate2::read::ZlibDecoder;
    use std::io::Read;

    /// Chunks by their kinds, with their checksums checked.
    fn chunks(mut file: &[u8]) -> Vec<(String, Vec<u8>)> {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        assert!(file.starts_with(b"\x89PNG\r\n\x1a\n"));
        file = &file[8..];
        let mut all = Vec::new();
        while !file.is_empty() {
            let len = number(&file[..4]) as usize;
            let mut checksum = Crc::new();
            checksum.update(&file[4..8 + len]);
            assert_eq!(number(&file[8 + len..12 + len]), checksum.sum());
            let kind = String::from_utf8(file[4..8].to_vec()).expect("letters");
            all.push((kind, file[8..8 + len].to_vec()));
            file = &file[12 + len..];
        }
        all
    }

    #[test]
    fn a_chart_is_a_picture_with_bars_and_letters() {
        let contenders = [contender("tangor", 50.0), contender("other", 25.0)];
        let chunks = chunks(&decode(&contenders, Some(60.0)).png());
        let kinds: Vec<&str> = chunks.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["IHDR", "IDAT", "IEND"]);
        let width = u32::from_be_bytes(chunks[0].1[..4].try_into().unwrap()) as usize;
        let height = u32::from_be_bytes(chunks[0].1[4..8].try_into().unwrap()) as usize;
        assert_eq!(width, 1520);
        let mut rows = Vec::new();
        ZlibDecoder::new(chunks[1].1.as_slice()).read_to_end(&mut rows).unwrap();
        assert_eq!(rows.len(), height * (1 + 3 * width));
        let ours = [0xe8, 0x59, 0x0c];
        let count = |colour: [u8; 3]| {
            let pixels = rows.chunks_exact(1 + 3 * width).flat_map(|row| row[1..].chunks_exact(3));
            pixels.filter(|pixel| **pixel == colour).count()
        };
        // 417 of 500 points wide and 16 high, less the whisker's line.
        assert!((20_000..30_000).contains(&count(ours)), "{}", count(ours));
        assert!(count([0; 3]) > 500 && count([255; 3]) > rows.len() / 6);
    }

    #[test]
    fn nothing_is_painted_outside() {
        let mut canvas = Canvas::new(4, 4);
        let faces = Face::both();
        let content = "outside".to_owned();
        canvas.paint(&Mark::Text { x: -9.0, y: 3.0, style: Style::Ends, content }, &faces);
        canvas.paint(&Mark::Bar([-5.0, -5.0, 100.0, 5.5], BLACK), &faces);
        assert_eq!(canvas.pixels[..4], [[0; 3]; 4]);
        assert_eq!(canvas.pixels[4..], [[255; 3]; 12]);
    }
}
