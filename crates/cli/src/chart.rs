//! Pictures into files: the end of a name says which kind.

use crate::error::{Failure, Outcome};
use std::path::{Path, PathBuf};

/// The ends of pictures' names.
const PNG: &str = "png";
const SVG: &str = "svg";

/// A name that says what to draw.
pub(crate) fn picture(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    match path.extension().is_some_and(|end| [PNG, SVG].iter().any(|e| end.eq_ignore_ascii_case(e)))
    {
        true => Ok(path),
        false => Err("a chart's name ends in .svg or .png".to_owned()),
    }
}

/// Writes the one or the other.
pub(crate) fn write(
    path: &Path,
    svg: impl FnOnce() -> String,
    png: impl FnOnce() -> Vec<u8>,
) -> Outcome {
    let is_png = path.extension().is_some_and(|end| end.eq_ignore_ascii_case(PNG));
    let bytes = if is_png { png() } else { svg().into_bytes() };
    std::fs::write(path, bytes).map_err(|e| Failure::from(e).about(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_known_by_the_ends_of_their_names() {
        assert!(picture("a.svg").is_ok() && picture("b/c.PNG").is_ok());
        assert!(picture("a.jpg").is_err() && picture("png").is_err());
    }
}
