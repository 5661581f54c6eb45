//! Marks as SVG.

use super::{BLACK, Colour, LIMIT, Mark, Style, WIDTH};
use std::fmt::{self, Write};

/// The picture as a file.
pub(super) fn write(marks: &[Mark], height: f64) -> String {
    let mut body = String::new();
    for mark in marks {
        // Writing to a string cannot fail.
        let _ = one(&mut body, mark);
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' \
         viewBox='0 0 {WIDTH} {height}' font-family='DejaVu Sans, sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}

fn one(body: &mut String, mark: &Mark) -> fmt::Result {
    match mark {
        Mark::Bar([x, y, width, height], colour) => writeln!(
            body,
            "<rect x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{height:.1}' fill='{colour}'/>"
        ),
        Mark::Whisker([from, to, y]) => writeln!(
            body,
            "<path d='M{from:.1} {y:.1}H{to:.1}' stroke='{BLACK}' stroke-width='1.5'/>"
        ),
        Mark::Limit([x, top, bottom]) => writeln!(
            body,
            "<path d='M{x:.1} {top:.1}V{bottom:.1}' stroke='{LIMIT}' stroke-dasharray='4 3'/>"
        ),
        Mark::Text { x, y, style, content } => {
            let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let style = match style {
                Style::Title => " font-weight='bold' font-size='15'".to_owned(),
                Style::Begins => String::new(),
                Style::Ends => " text-anchor='end'".to_owned(),
                Style::Limit => format!(" text-anchor='end' fill='{LIMIT}'"),
            };
            writeln!(body, "<text x='{x:.1}' y='{y:.1}'{style}>{content}</text>")
        }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:06x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{contender, decode};

    #[test]
    fn names_cannot_become_elements() {
        let contenders = [contender("a", 50.0), contender("b <2>", 25.0)];
        let svg = decode(&contenders, Some(60.0)).svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("b &lt;2&gt;") && !svg.contains("<2>"), "{svg}");
        assert!(svg.contains("fill='#e8590c'") && svg.contains(">limit 60.0<"), "{svg}");
    }
}
