//! A comparison as a picture: one panel per rate, one bar per program; and devices at work, one
//! lane each ([`Lanes`]).
//!
//! Here a chart becomes marks; `svg` writes them down, `png` paints them.

mod font;
mod lanes;
mod png;
mod svg;

pub use lanes::{LaneBar, LanePanel, Lanes};

use crate::compare::{Contender, Metric, Spread};

/// Width of the picture.
const WIDTH: f64 = 760.0;
/// Where bars begin: names stand before.
const LEFT: f64 = 190.0;
/// Width of the longest bar: numbers stand behind.
const LONGEST: f64 = 500.0;
/// From one bar to the next, and how thick a bar is.
const STEP: f64 = 26.0;
const THICK: f64 = 16.0;
/// A panel's title and the room behind it.
const TITLE: f64 = 38.0;
/// The first contender is the one that the picture is about.
const OURS: Colour = Colour(0xe8590c);
const OTHERS: Colour = Colour(0x868e96);
const BLACK: Colour = Colour(0x000000);
const LIMIT: Colour = Colour(0xc92a2a);

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart<'a> {
    /// What stands above it.
    pub title: String,
    /// One bar each in every panel.
    pub contenders: &'a [Contender],
    /// The panels.
    pub panels: Vec<Panel>,
}

/// A panel: what it shows, and what the machine's limit allows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// As `prefill of 1024 tokens, tokens/s`.
    pub title: String,
    /// Which number.
    pub metric: Metric,
    /// As many as the machine could do, if that is known.
    pub limit: Option<f64>,
}

/// Red, green and blue, a byte each.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Colour(u32);

/// What is drawn, in the order of drawing; lengths are in points.
#[derive(Clone, Debug, PartialEq)]
enum Mark {
    /// A filled rectangle: left, top, width, height.
    Bar([f64; 4], Colour),
    /// A line from left to right at a height: left, right, y.
    Whisker([f64; 3]),
    /// A dashed line from top to bottom: x, top, bottom.
    Limit([f64; 3]),
    /// A line of text.
    Text { x: f64, y: f64, style: Style, content: String },
}

/// How text looks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// Bold and larger, begins at x.
    Title,
    /// Begins at x.
    Begins,
    /// Ends at x.
    Ends,
    /// Ends at x, in the colour of limits.
    Limit,
}

impl Chart<'_> {
    /// Bars with whiskers from the least to the greatest number, and the limits as dashed lines, as
    /// SVG.
    #[must_use]
    pub fn svg(&self) -> String {
        let (marks, height) = self.marks();
        svg::write(&marks, height)
    }

    /// The same as PNG.
    #[must_use]
    pub fn png(&self) -> Vec<u8> {
        let (marks, height) = self.marks();
        png::write(&marks, height)
    }

    /// Everything that is drawn, and the height of the picture.
    fn marks(&self) -> (Vec<Mark>, f64) {
        let mut marks = Vec::new();
        let mut y = 34.0;
        text(&mut marks, 16.0, y, Style::Title, &self.title);
        for panel in &self.panels {
            y = draw(&mut marks, y + 14.0, self.contenders, panel);
        }
        (marks, y + 16.0)
    }
}

/// Draws a panel below `top` and returns where it ends.
fn draw(marks: &mut Vec<Mark>, top: f64, contenders: &[Contender], panel: &Panel) -> f64 {
    let shown: Vec<(usize, &Contender, Spread)> = contenders
        .iter()
        .enumerate()
        .filter_map(|(index, one)| Some((index, one, one.spread(panel.metric)?)))
        .collect();
    let greatest = shown.iter().map(|(_, _, spread)| spread.max);
    let greatest = greatest.chain(panel.limit).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / greatest * LONGEST;
    text(marks, 16.0, top + 20.0, Style::Begins, &panel.title);
    let bars = top + TITLE - 6.0;
    for (row, (index, contender, spread)) in shown.iter().enumerate() {
        let y = bars + row as f64 * STEP;
        let middle = y + THICK / 2.0;
        let colour = if *index == 0 { OURS } else { OTHERS };
        text(marks, LEFT - 8.0, middle + 4.0, Style::Ends, &contender.name);
        marks.push(Mark::Bar([LEFT, y, x(spread.median) - LEFT, THICK], colour));
        marks.push(Mark::Whisker([x(spread.min), x(spread.max), middle]));
        let behind = x(spread.max.max(spread.median)) + 6.0;
        text(marks, behind, middle + 4.0, Style::Begins, &number(spread.median));
    }
    let end = bars + shown.len() as f64 * STEP;
    if let Some(limit) = panel.limit {
        marks.push(Mark::Limit([x(limit), bars - 4.0, end - 4.0]));
        text(marks, x(limit), top + 20.0, Style::Limit, &format!("limit {}", number(limit)));
    }
    end
}

fn text(marks: &mut Vec<Mark>, x: f64, y: f64, style: Style, content: &str) {
    marks.push(Mark::Text { x, y, style, content: content.to_owned() });
}

/// A rate with as many digits as it deserves.
fn number(value: f64) -> String {
    format!("{value:.*}", usize::from(value < 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Turn;

    pub(super) fn contender(name: &str, rate: f64) -> Contender {
        let turn = Turn { decode_tps: Some(rate), ..Turn::default() };
        Contender { name: name.into(), settings: String::new(), turns: vec![turn] }
    }

    pub(super) fn decode(contenders: &[Contender], limit: Option<f64>) -> Chart<'_> {
        let panel = Panel { title: "decode".into(), metric: Metric::Decode, limit };
        Chart { title: "title".into(), contenders, panels: vec![panel] }
    }

    /// Widths and colours of the bars.
    fn bars(chart: &Chart<'_>) -> Vec<(f64, Colour)> {
        let bar = |mark: &Mark| match mark {
            Mark::Bar([_, _, width, _], colour) => Some((*width, *colour)),
            _ => None,
        };
        chart.marks().0.iter().filter_map(bar).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_shares_of_the_greatest() {
        let contenders = [contender("a", 50.0), contender("b", 25.0)];
        let half = LONGEST / 2.0;
        assert_eq!(bars(&decode(&contenders, None)), [(LONGEST, OURS), (half, OTHERS)]);
        // A limit that is further away makes them shorter.
        let chart = decode(&contenders, Some(100.0));
        assert_eq!(bars(&chart), [(half, OURS), (half / 2.0, OTHERS)]);
        let limit = |mark: &Mark| matches!(mark, Mark::Limit([x, ..]) if *x == LEFT + LONGEST);
        assert!(chart.marks().0.iter().any(limit));
    }

    #[test]
    fn a_program_without_the_number_has_no_bar() {
        let contenders = [contender("a", 1.0)];
        let panel = Panel { title: "prefill".into(), metric: Metric::Prefill, limit: None };
        let chart = Chart { panels: vec![panel], ..decode(&contenders, None) };
        assert_eq!(bars(&chart), []);
        assert!(chart.png().len() > 100);
    }
}
