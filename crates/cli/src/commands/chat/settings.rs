//! What `/set` changes: the sampling options, one by one, by the names that they have on the
//! command line.

use crate::args::{SamplingOptions, above_zero, at_least_zero, finite, positive, share};
use tangor_engine::SamplingParams;

/// Every name, in the order in which they are shown.
pub(crate) const NAMES: &[&str] = &[
    "max-tokens",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "seed",
    "stop",
    "repetition-penalty",
    "presence-penalty",
    "frequency-penalty",
];

/// Changes one setting; `default` as the value takes a change back.
///
/// # Errors
/// Says what is wrong with the name or the value.
pub(crate) fn set(options: &mut SamplingOptions, name: &str, value: &str) -> Result<(), String> {
    let name = canonical(name)?;
    if value == "default" {
        reset(options, name);
        return Ok(());
    }
    let whole = |value: &str| value.parse().map_err(|_| "a whole number is expected".to_owned());
    let result = match name {
        "max-tokens" => positive(value).map(|v| options.max_tokens = Some(v)),
        "temperature" => at_least_zero(value).map(|v| options.temperature = Some(v)),
        "top-k" => positive_or_zero(value).map(|v| options.top_k = Some(v)),
        "top-p" => share(value).map(|v| options.top_p = Some(v)),
        "min-p" => share(value).map(|v| options.min_p = Some(v)),
        "seed" => whole(value).map(|v| options.seed = Some(v)),
        "stop" => {
            options.stop.push(value.to_owned());
            Ok(())
        }
        "repetition-penalty" => above_zero(value).map(|v| options.repetition_penalty = Some(v)),
        "presence-penalty" => finite(value).map(|v| options.presence_penalty = Some(v)),
        _ => finite(value).map(|v| options.frequency_penalty = Some(v)),
    };
    result.map_err(|why| format!("{name}: {why}"))
}

/// One setting as `/set NAME` shows it; what is not set is as the model's publisher `recommended`.
///
/// # Errors
/// If there is no such setting.
pub(crate) fn show(
    options: &SamplingOptions,
    recommended: &SamplingParams,
    name: &str,
) -> Result<String, String> {
    fn text<T: ToString>(value: Option<T>, default: impl ToString) -> String {
        value.map_or_else(|| format!("{} (default)", default.to_string()), |v| v.to_string())
    }
    let name = canonical(name)?;
    let value = match name {
        "max-tokens" => text(options.max_tokens, "until the model stops"),
        "temperature" => text(options.temperature, recommended.temperature),
        "top-k" => text(options.top_k, recommended.top_k),
        "top-p" => text(options.top_p, recommended.top_p),
        "min-p" => text(options.min_p, recommended.min_p),
        "seed" => text(options.seed, "another one each time"),
        "stop" if options.stop.is_empty() => "none (default)".to_owned(),
        "stop" => options.stop.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "),
        "repetition-penalty" => text(options.repetition_penalty, recommended.repetition_penalty),
        "presence-penalty" => text(options.presence_penalty, recommended.presence_penalty),
        _ => text(options.frequency_penalty, recommended.frequency_penalty),
    };
    Ok(format!("  {name:<20} {value}"))
}

fn reset(options: &mut SamplingOptions, name: &str) {
    match name {
        "max-tokens" => options.max_tokens = None,
        "temperature" => options.temperature = None,
        "top-k" => options.top_k = None,
        "top-p" => options.top_p = None,
        "min-p" => options.min_p = None,
        "seed" => options.seed = None,
        "stop" => options.stop.clear(),
        "repetition-penalty" => options.repetition_penalty = None,
        "presence-penalty" => options.presence_penalty = None,
        _ => options.frequency_penalty = None,
    }
}

fn positive_or_zero(value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| "a whole number is expected".to_owned())
}

/// The name as it is listed, for what was typed: `top_k`, `--top-k` and unique beginnings.
fn canonical(typed: &str) -> Result<&'static str, String> {
    let wanted = typed.trim_start_matches('-').replace('_', "-").to_ascii_lowercase();
    let fitting: Vec<&str> =
        NAMES.iter().copied().filter(|name| name.starts_with(&wanted)).collect();
    match fitting.as_slice() {
        _ if wanted.is_empty() => Err(unknown(typed)),
        [name] => Ok(name),
        [] => Err(unknown(typed)),
        several => several
            .iter()
            .copied()
            .find(|name| *name == wanted)
            .ok_or_else(|| format!("{typed} may be {}", several.join(" or "))),
    }
}

fn unknown(typed: &str) -> String {
    format!("there is no setting {typed}; there are {}", NAMES.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(options: &SamplingOptions, name: &str) -> Result<String, String> {
        show(options, &SamplingParams::default(), name)
    }

    #[test]
    fn every_setting_can_be_set_shown_and_taken_back() {
        let mut options = SamplingOptions::default();
        for name in NAMES {
            let before = shown(&options, name).unwrap();
            set(&mut options, name, "1").unwrap();
            assert_ne!(shown(&options, name).unwrap(), before, "{name}");
            set(&mut options, name, "default").unwrap();
            assert_eq!(shown(&options, name).unwrap(), before, "{name}");
        }
    }

    #[test]
    fn names_may_be_shortened_and_spelled_either_way() {
        for (typed, name) in [
            ("temp", "temperature"),
            ("top_k", "top-k"),
            ("--min-p", "min-p"),
            ("pre", "presence-penalty"),
        ] {
            assert_eq!(canonical(typed).as_deref(), Ok(name));
        }
        assert!(canonical("top").unwrap_err().contains("top-k or top-p"));
        assert!(canonical("heat").unwrap_err().contains("temperature"));
        assert!(canonical("").is_err());
    }

    #[test]
    fn values_out_of_range_change_nothing() {
        let mut options = SamplingOptions::default();
        for (name, value) in [
            ("temperature", "-1"),
            ("top-p", "2"),
            ("max-tokens", "0"),
            ("seed", "x"),
            ("top-k", ""),
        ] {
            let why = set(&mut options, name, value).unwrap_err();
            assert!(why.starts_with(name), "{why}");
            assert!(shown(&options, name).unwrap().ends_with("(default)"));
        }
    }
}
