//! Processors by their brand strings, and what AMD's flows support on them.

use serde::Serialize;

/// What a brand string says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Chip {
    /// Ryzen AI 300, Strix Point: NPU of 50 TOPS, Radeon 880M or 890M.
    StrixPoint,
    /// Ryzen AI 300, Krackan Point: the same NPU, Radeon 840M or 860M.
    KrackanPoint,
    /// Ryzen AI Max, Strix Halo: the same NPU, a larger GPU.
    StrixHalo,
    /// Ryzen 7000 and 8000.
    Ryzen7000And8000,
    /// Anything else.
    Other,
}

impl Chip {
    /// The chip behind a brand string, as `AMD Ryzen AI 9 HX 370 w/ Radeon 890M`.
    pub(crate) fn of(brand: &str) -> Self {
        let words: Vec<&str> = brand.split_whitespace().collect();
        let Some(ryzen) = words.iter().position(|word| word.eq_ignore_ascii_case("ryzen")) else {
            return Self::Other;
        };
        let behind = &words[ryzen + 1..];
        let number = behind.iter().find_map(|word| model_number(word));
        let ai = behind.first().is_some_and(|word| word.eq_ignore_ascii_case("ai"));
        let max = |word: &&str| word.to_ascii_lowercase().starts_with("max");
        match number {
            _ if ai && behind.iter().any(max) => Self::StrixHalo,
            Some(360..=399) if ai => Self::StrixPoint,
            Some(300..=359) if ai => Self::KrackanPoint,
            Some(7000..=8999) if !ai => Self::Ryzen7000And8000,
            _ => Self::Other,
        }
    }

    /// What a person would call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StrixPoint => "Strix Point",
            Self::KrackanPoint => "Krackan Point",
            Self::StrixHalo => "Strix Halo",
            Self::Ryzen7000And8000 => "Ryzen 7000/8000",
            Self::Other => "no Ryzen AI processor",
        }
    }

    /// Whether its NPU runs language models.
    pub(crate) fn has_npu(self) -> bool {
        matches!(self, Self::StrixPoint | Self::KrackanPoint | Self::StrixHalo)
    }

    /// What AMD's flows for language models support on it.
    pub(crate) fn support(self) -> &'static str {
        match self {
            Self::StrixPoint | Self::KrackanPoint => {
                "supported for hybrid (NPU and GPU), NPU-only and CPU execution"
            }
            Self::StrixHalo => {
                "has the NPU of the supported processors, and is not in their list itself"
            }
            Self::Ryzen7000And8000 => "supported for CPU execution; hybrid needs a Ryzen AI 300",
            Self::Other => "not in the list for hybrid execution, which needs a Ryzen AI 300",
        }
    }
}

/// The digits that a word begins with, if it is a model number: `370`, `8845HS`.
fn model_number(word: &str) -> Option<u32> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let number = word.get(..digits)?;
    (3..=4).contains(&digits).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brand_strings_name_their_chips() {
        for (brand, chip) in [
            ("AMD Ryzen AI 9 HX 370 w/ Radeon 890M", Chip::StrixPoint),
            ("AMD Ryzen AI 9 HX 375 w/ Radeon 890M", Chip::StrixPoint),
            ("AMD Ryzen AI 9 365 w/ Radeon 880M", Chip::StrixPoint),
            ("AMD Ryzen AI 9 HX PRO 370 w/ Radeon 890M", Chip::StrixPoint),
            ("AMD Ryzen AI 7 PRO 360 w/ Radeon 880M", Chip::StrixPoint),
            ("AMD Ryzen AI 7 350 w/ Radeon 860M", Chip::KrackanPoint),
            ("AMD Ryzen AI 5 340 w/ Radeon 840M", Chip::KrackanPoint),
            ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", Chip::StrixHalo),
            ("AMD Ryzen AI Max PRO 390 w/ Radeon 8050S", Chip::StrixHalo),
            ("AMD Ryzen 7 8845HS w/ Radeon 780M Graphics", Chip::Ryzen7000And8000),
            ("AMD Ryzen 9 7940HS w/ Radeon 780M Graphics", Chip::Ryzen7000And8000),
            ("AMD Ryzen 9 7950X 16-Core Processor", Chip::Ryzen7000And8000),
            ("AMD Ryzen 7 5800X 8-Core Processor", Chip::Other),
            ("AMD Ryzen 9 9950X 16-Core Processor", Chip::Other),
            ("AMD EPYC 9554 64-Core Processor", Chip::Other),
            ("AMD EPYC 7763 64-Core Processor", Chip::Other),
            ("Intel(R) Core(TM) Ultra 7 258V", Chip::Other),
            ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", Chip::Other),
            ("Ryzen", Chip::Other),
            ("", Chip::Other),
        ] {
            assert_eq!(Chip::of(brand), chip, "{brand}");
        }
    }
}
