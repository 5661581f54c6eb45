//! A comparison as a picture: one panel per rate, one bar per program, in SVG.

use crate::compare::{Contender, Metric, Spread};
use std::fmt::Write;

/// Width of the picture.
const WIDTH: f64 = 760.0;
/// Where bars begin: names stand before.
const LEFT: f64 = 190.0;
/// Width of the longest bar: numbers stand behind.
const LONGEST: f64 = 440.0;
/// From one bar to the next, and how thick a bar is.
const STEP: f64 = 26.0;
const THICK: f64 = 16.0;
/// A panel's title and the room behind it.
const TITLE: f64 = 38.0;
/// The first contender is the one that the picture is about.
const OURS: &str = "#e8590c";
const OTHERS: &str = "#868e96";

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

/// Draws bars with whiskers from the least to the greatest number, and the limits as dashed lines.
#[must_use]
pub fn chart(title: &str, contenders: &[Contender], panels: &[Panel]) -> String {
    let mut body = String::new();
    let mut y = 34.0;
    text(&mut body, 16.0, y, "font-weight='bold' font-size='15'", title);
    for panel in panels {
        y = draw(&mut body, y + 14.0, contenders, panel);
    }
    let height = y + 16.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' \
         viewBox='0 0 {WIDTH} {height}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}

/// Draws a panel below `top` and returns where it ends.
fn draw(body: &mut String, top: f64, contenders: &[Contender], panel: &Panel) -> f64 {
    let shown: Vec<(usize, &Contender, Spread)> = contenders
        .iter()
        .enumerate()
        .filter_map(|(index, one)| Some((index, one, one.spread(panel.metric)?)))
        .collect();
    let greatest = shown.iter().map(|(_, _, spread)| spread.max);
    let greatest = greatest.chain(panel.limit).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / greatest * LONGEST;
    text(body, 16.0, top + 20.0, "font-size='13'", &panel.title);
    let bars = top + TITLE - 6.0;
    for (row, (index, contender, spread)) in shown.iter().enumerate() {
        let y = bars + row as f64 * STEP;
        let middle = y + THICK / 2.0;
        let colour = if *index == 0 { OURS } else { OTHERS };
        let name = "text-anchor='end'";
        text(body, LEFT - 8.0, middle + 4.0, name, &contender.name);
        let length = x(spread.median) - LEFT;
        let _ = writeln!(
            body,
            "<rect x='{LEFT}' y='{y}' width='{length:.1}' height='{THICK}' fill='{colour}'/>\n\
             <path d='M{:.1} {middle}H{:.1}' stroke='black' stroke-width='1.5'/>",
            x(spread.min),
            x(spread.max),
        );
        let behind = x(spread.max.max(spread.median)) + 6.0;
        text(body, behind, middle + 4.0, "", &number(spread.median));
    }
    let end = bars + shown.len() as f64 * STEP;
    if let Some(limit) = panel.limit {
        let at = x(limit);
        let _ = writeln!(
            body,
            "<path d='M{at:.1} {:.1}V{:.1}' stroke='#c92a2a' stroke-dasharray='4 3'/>",
            bars - 4.0,
            end - 4.0,
        );
        let label = format!("limit {}", number(limit));
        text(body, at, top + 20.0, "text-anchor='end' fill='#c92a2a' font-size='11'", &label);
    }
    end
}

fn text(body: &mut String, x: f64, y: f64, style: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(body, "<text x='{x:.1}' y='{y:.1}' {style}>{content}</text>");
}

/// A rate with as many digits as it deserves.
fn number(value: f64) -> String {
    format!("{value:.*}", usize::from(value < 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Turn;

    fn contender(name: &str, rate: f64) -> Contender {
        let turn = Turn { decode_tps: Some(rate), ..Turn::default() };
        Contender { name: name.into(), settings: String::new(), turns: vec![turn] }
    }

    #[test]
    fn bars_are_as_long_as_their_shares_of_the_greatest() {
        let contenders = [contender("a", 50.0), contender("b <2>", 25.0)];
        let panel = |limit| Panel { title: "decode".into(), metric: Metric::Decode, limit };
        let svg = chart("title", &contenders, &[panel(None)]);
        assert!(svg.contains(&format!("width='{LONGEST:.1}' height='{THICK}' fill='{OURS}'")));
        let half = LONGEST / 2.0;
        assert!(svg.contains(&format!("width='{half:.1}' height='{THICK}' fill='{OTHERS}'")));
        assert!(svg.contains("b &lt;2&gt;") && !svg.contains("<2>"), "{svg}");
        // A limit that is further away makes them shorter.
        let svg = chart("title", &contenders, &[panel(Some(100.0))]);
        assert!(svg.contains(&format!("width='{half:.1}' height='{THICK}' fill='{OURS}'")));
        assert!(svg.contains("limit 100"));
    }

    #[test]
    fn a_program_without_the_number_has_no_bar() {
        let panel = Panel { title: "prefill".into(), metric: Metric::Prefill, limit: None };
        let svg = chart("title", &[contender("a", 1.0)], &[panel]);
        assert!(svg.starts_with("<svg") && !svg.contains(OURS), "{svg}");
    }
}
