//! Devices at work as a picture: one lane per device, time from left to right.

use super::{Colour, Mark, Style, WIDTH, number, png, svg, text};

/// Where time begins: names of devices stand before.
const LEFT: f64 = 90.0;
/// Length of the longest panel's time.
const LONGEST: f64 = 640.0;
/// From one lane to the next, and how thick its bars are.
const STEP: f64 = 34.0;
const THICK: f64 = 24.0;
/// A panel's title, and the room for numbers below its lanes.
const TITLE: f64 = 30.0;
const AXIS: f64 = 26.0;
/// Pieces that the time axis is cut into.
const TICKS: usize = 4;
/// Points that a letter is wide, at most.
const LETTER: f64 = 8.0;
/// Bars of one device in turns, so that neighbours can be told apart.
const COLOURS: [[Colour; 2]; 3] = [
    [Colour(0xffa94d), Colour(0xffc078)],
    [Colour(0x74c0fc), Colour(0xa5d8ff)],
    [Colour(0x8ce99a), Colour(0xb2f2bb)],
];
const GREY: Colour = Colour(0xced4da);

/// Devices at work.
#[derive(Clone, Debug, PartialEq)]
pub struct Lanes {
    /// What stands above it.
    pub title: String,
    /// Names of the devices, from top to bottom.
    pub devices: Vec<String>,
    /// One below the other, each with a scale of its own.
    pub panels: Vec<LanePanel>,
}

/// A span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct LanePanel {
    /// As `prefill of 1024 tokens: 1.90 s predicted`.
    pub title: String,
    /// Who works when.
    pub bars: Vec<LaneBar>,
}

/// A device at work.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneBar {
    /// Index of the device.
    pub device: usize,
    /// Seconds from the beginning of the panel.
    pub start_s: f64,
    /// Seconds until it is done.
    pub end_s: f64,
    /// What it does.
    pub label: String,
    /// Seconds that it took, where somebody measured: drawn as a line in the bar.
    pub measured_s: Option<f64>,
}

impl Lanes {
    /// The picture as SVG.
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

    fn marks(&self) -> (Vec<Mark>, f64) {
        let mut marks = Vec::new();
        let mut y = 34.0;
        text(&mut marks, 16.0, y, Style::Title, &self.title);
        for panel in &self.panels {
            y = self.draw(&mut marks, y + 14.0, panel);
        }
        (marks, y + 8.0)
    }

    /// Draws a panel below `top` and returns where it ends.
    fn draw(&self, marks: &mut Vec<Mark>, top: f64, panel: &LanePanel) -> f64 {
        let ends = panel.bars.iter().map(|bar| bar.end_s.max(bar.start_s + measured(bar)));
        let whole = ends.fold(f64::MIN_POSITIVE, f64::max);
        let x = |seconds: f64| LEFT + seconds / whole * LONGEST;
        text(marks, 16.0, top + 20.0, Style::Begins, &panel.title);
        let lanes = top + TITLE;
        let bottom = lanes + self.devices.len() as f64 * STEP;
        for tick in 0..=TICKS {
            let at = x(whole * tick as f64 / TICKS as f64);
            marks.push(Mark::Bar([at - 0.5, lanes, 1.0, bottom - lanes], GREY));
            let label = format!("{} ms", number(whole * 1e3 * tick as f64 / TICKS as f64));
            let style = if tick == TICKS { Style::Ends } else { Style::Begins };
            text(marks, at, bottom + 14.0, style, &label);
        }
        for (lane, device) in self.devices.iter().enumerate() {
            let y = lanes + lane as f64 * STEP + (STEP - THICK) / 2.0;
            text(marks, LEFT - 8.0, y + THICK / 2.0 + 4.0, Style::Ends, device);
            let of_lane = panel.bars.iter().filter(|bar| bar.device == lane);
            for (turn, bar) in of_lane.enumerate() {
                let (left, right) = (x(bar.start_s), x(bar.end_s).max(x(bar.start_s) + 1.0));
                let colour = COLOURS[lane % COLOURS.len()][turn % 2];
                marks.push(Mark::Bar([left, y, right - left, THICK], colour));
                if bar.measured_s.is_some() {
                    marks.push(Mark::Whisker([left, x(bar.start_s + measured(bar)), y + THICK]));
                }
                if bar.label.len() as f64 * LETTER < right - left {
                    text(marks, left + 4.0, y + THICK / 2.0 + 4.0, Style::Begins, &bar.label);
                }
            }
        }
        const { assert!(LEFT + LONGEST <= WIDTH) };
        bottom + AXIS
    }
}

fn measured(bar: &LaneBar) -> f64 {
    bar.measured_s.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(device: usize, start_s: f64, end_s: f64) -> LaneBar {
        LaneBar { device, start_s, end_s, label: "rows".into(), measured_s: None }
    }

    #[test]
    fn bars_stand_where_their_time_is() {
        let bars = vec![bar(0, 0.0, 1.0), bar(1, 0.5, 2.0)];
        let devices = vec!["npu".into(), "gpu".into()];
        let panels = vec![LanePanel { title: "prefill".into(), bars }];
        let lanes = Lanes { title: "two <devices>".into(), devices, panels };
        let (marks, _) = lanes.marks();
        let wide = |mark: &Mark| match mark {
            Mark::Bar([x, _, width, height], _) if *height == THICK => Some((*x, *width)),
            _ => None,
        };
        let found: Vec<(f64, f64)> = marks.iter().filter_map(wide).collect();
        let quarter = LONGEST / 4.0;
        assert_eq!(found, [(LEFT, 2.0 * quarter), (LEFT + quarter, 3.0 * quarter)]);
        assert!(lanes.svg().contains("two &lt;devices&gt;"));
        assert!(lanes.png().len() > 100);
    }

    #[test]
    fn what_was_measured_is_a_line_that_may_be_longer() {
        let bars = vec![LaneBar { measured_s: Some(2.0), ..bar(0, 0.0, 1.0) }];
        let panels = vec![LanePanel { title: String::new(), bars }];
        let lanes = Lanes { title: String::new(), devices: vec!["cpu".into()], panels };
        let whisker = Mark::Whisker([LEFT, LEFT + LONGEST, 34.0 + 14.0 + TITLE + 5.0 + THICK]);
        assert!(lanes.marks().0.contains(&whisker));
    }
}
