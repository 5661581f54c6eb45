//! Machines that are not here, read from files: built-in ones and a user's own.
//!
//! Every number of a file stands with what it is worth (its grade) and where it comes from. Nothing
//! of a file is trusted: sizes, names and ranges are checked, and errors name the field.

use crate::{DeviceProfile, Kind, MemoryKind, PackedWeights, Rates};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest file, in bytes.
const FILE_BYTES: usize = 1 << 20;
/// Most devices of a machine.
const DEVICES: usize = 16;
/// Longest name or text, in bytes.
const TEXT_BYTES: usize = 1000;

macro_rules! built_in {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../profiles/", $name, ".json")))),*]
    };
}

/// Names and files.
static BUILT_IN: &[(&str, &str)] = built_in!["strix-point", "krackan-point"];

/// A machine as a file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// As `strix-point`.
    pub name: String,
    /// What a person would call it.
    pub title: String,
    /// Whether published measurements of this very machine are behind its rates.
    pub calibrated: bool,
    /// Its devices.
    pub devices: Vec<DeviceProfile>,
    /// What the last steps of [`Step`](crate::simulate::Step) assume.
    pub assumed: Assumed,
    /// Every number with its source.
    pub sources: Vec<Source>,
}

/// Gains that nobody has measured on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Assumed {
    /// Seconds per node of a token on the GPU when command lists are replayed.
    pub gpu_node_row_s: Option<f64>,
    /// Times as many tokens per second with a draft model, and the range.
    pub speculation: Option<[f64; 3]>,
    /// Bytes of weights from which on a model has a draft that is small enough.
    pub speculation_least_weights: f64,
}

/// What a number is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Measured by somebody who published it.
    Published,
    /// Chosen so that published measurements come out.
    Fitted,
    /// Follows from data sheets.
    Arithmetic,
    /// Nobody knows: see the sensitivity of what follows from it.
    Guess,
}

/// A number of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// As `npu.int8_ops_per_s`.
    pub what: String,
    /// The number.
    pub value: f64,
    /// What it is worth.
    pub grade: Grade,
    /// Where it comes from.
    pub source: String,
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Longer than any profile.
    #[error("a profile of {bytes} bytes is longer than {FILE_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON of a profile.
    #[error("not a profile: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that makes no sense.
    #[error("{field} is {value} and must be {allowed}")]
    Field {
        /// As `npu.int8_ops_per_s`.
        field: String,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    title: String,
    #[serde(default)]
    calibrated: bool,
    shared_read_bytes_per_s: Option<Number>,
    devices: Vec<FileDevice>,
    #[serde(default)]
    assumed: BTreeMap<String, Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDevice {
    name: String,
    kind: Kind,
    description: String,
    host_memory: bool,
    layout: String,
    #[serde(default)]
    row_counts: Vec<usize>,
    numbers: BTreeMap<String, Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Number {
    value: f64,
    grade: Grade,
    source: String,
}

impl Machine {
    /// The names that [`Machine::built_in`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// A built-in machine.
    ///
    /// # Errors
    /// As [`Machine::parse`]; tests see to it that there is none.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Result<Self, ProfileError>> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(text))
    }

    /// A machine from the JSON of a profile, as those in `crates/plan/profiles/`. What a device's
    /// numbers leave out is typical of its kind.
    ///
    /// # Errors
    /// [`ProfileError`], with the field's name.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        if text.len() > FILE_BYTES {
            return Err(ProfileError::TooLong { bytes: text.len() });
        }
        let file: File = serde_json::from_str(text)?;
        check_text("name", &file.name)?;
        check_text("title", &file.title)?;
        let count = file.devices.len();
        if count == 0 || count > DEVICES {
            return Err(field("devices", count, "1 to 16"));
        }
        let mut sources = Vec::new();
        let shared = file.shared_read_bytes_per_s;
        let shared = shared.map(|n| take("shared_read_bytes_per_s", n, &mut sources));
        let shared = shared.transpose()?;
        let mut devices: Vec<DeviceProfile> = Vec::with_capacity(count);
        for device in file.devices {
            let mut device = device.profile(&mut sources)?;
            device.rates.shared_read_bytes_per_s = shared.filter(|_| device.memory.is_host());
            if devices.iter().any(|other| other.name == device.name) {
                return Err(field("devices", device.name, "named differently each"));
            }
            devices.push(device);
        }
        let assumed = Assumed::read(file.assumed, &mut sources)?;
        let (name, title, calibrated) = (file.name, file.title, file.calibrated);
        Ok(Self { name, title, calibrated, devices, assumed, sources })
    }
}

impl FileDevice {
    fn profile(self, sources: &mut Vec<Source>) -> Result<DeviceProfile, ProfileError> {
        for (what, text) in
            [("name", &self.name), ("description", &self.description), ("layout", &self.layout)]
        {
            check_text(&format!("devices.{what}"), text)?;
        }
        let rising = self.row_counts.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising
            || self.row_counts.len() > 64
            || self.row_counts.iter().any(|&n| n == 0 || n > 1 << 20)
        {
            let value = format!("{:?}", self.row_counts.iter().take(4).collect::<Vec<_>>());
            return Err(field(&format!("{}.row_counts", self.name), value, "rising, 1 to 1048576"));
        }
        let memory = if self.host_memory { MemoryKind::Host } else { MemoryKind::Own };
        let mut device = DeviceProfile {
            description: self.description,
            layout: self.layout,
            row_counts: self.row_counts,
            ..DeviceProfile::new(&self.name, self.kind, 0, memory)
        };
        let mut attention = false;
        for (key, number) in self.numbers {
            attention |= key == "attention_ops_per_s";
            let what = format!("{}.{key}", self.name);
            let value = take(&what, number, sources)?;
            set(&mut device, &key, value, &what)?;
        }
        if !attention {
            device.rates.attention_ops_per_s = device.rates.int8_ops_per_s;
            device.rates.attention_row_ops_per_s = device.rates.int8_ops_per_s;
        }
        device.rates.element_s = 0.0;
        if device.memory_bytes == 0 {
            return Err(field(&format!("{}.memory_bytes", self.name), "missing", "given"));
        }
        Ok(device)
    }
}

/// Puts a number where it belongs, if it may be that.
fn set(device: &mut DeviceProfile, key: &str, value: f64, what: &str) -> Result<(), ProfileError> {
    let rates: &mut Rates = &mut device.rates;
    let (slot, allowed, fine) = match key {
        "int8_ops_per_s" => (&mut rates.int8_ops_per_s, RATE, is_rate(value)),
        "attention_ops_per_s" => {
            rates.attention_row_ops_per_s = value;
            (&mut rates.attention_ops_per_s, RATE, is_rate(value))
        }
        "read_bytes_per_s" => (&mut rates.read_bytes_per_s, RATE, is_rate(value)),
        "link_bytes_per_s" => (&mut rates.link_bytes_per_s, RATE, is_rate(value)),
        "node_s" => (&mut rates.node_s, SPAN, is_span(value)),
        "node_row_s" => (&mut rates.node_row_s, SPAN, is_span(value)),
        "run_s" => (&mut rates.run_s, SPAN, is_span(value)),
        "sync_s" => (&mut rates.sync_s, SPAN, is_span(value)),
        "together" => (&mut rates.together, "above 0 and at most 1", value > 0.0 && value <= 1.0),
        "layout_bytes" if (0.1..=10.0).contains(&value) => {
            device.packed = PackedWeights::Times(value);
            return Ok(());
        }
        "memory_bytes" if (1.0..1e15).contains(&value) => {
            device.memory_bytes = value as u64;
            return Ok(());
        }
        "matrix_tile_inputs" | "matrix_tile_outputs" if is_tile(value) => {
            rates.matrix_tile[usize::from(key.ends_with("outputs"))] = value as usize;
            return Ok(());
        }
        "row_tile" if is_tile(value) => {
            rates.row_tile = value as usize;
            return Ok(());
        }
        "layout_bytes" => return Err(field(what, value, "0.1 to 10")),
        "memory_bytes" => return Err(field(what, value, "a number of bytes")),
        "matrix_tile_inputs" | "matrix_tile_outputs" | "row_tile" => {
            return Err(field(what, value, "a whole number from 1 to 65536"));
        }
        _ => return Err(field(what, value, "left out: there is no such number")),
    };
    if !fine {
        return Err(field(what, value, allowed));
    }
    *slot = value;
    Ok(())
}

const RATE: &str = "a rate from 1e3 to 1e18 per second";
const SPAN: &str = "0 to 10 seconds";

fn is_rate(value: f64) -> bool {
    (1e3..=1e18).contains(&value)
}

fn is_span(value: f64) -> bool {
    (0.0..=10.0).contains(&value)
}

fn is_tile(value: f64) -> bool {
    (1.0..=65536.0).contains(&value) && value.fract() == 0.0
}

impl Assumed {
    fn read(
        numbers: BTreeMap<String, Number>,
        sources: &mut Vec<Source>,
    ) -> Result<Self, ProfileError> {
        let mut assumed = Self::default();
        let mut factors = [None; 3];
        for (key, number) in numbers {
            let what = format!("assumed.{key}");
            let value = take(&what, number, sources)?;
            let factor = match &*key {
                "gpu_node_row_s" if is_span(value) => {
                    assumed.gpu_node_row_s = Some(value);
                    continue;
                }
                "speculation_least_weights" if (0.0..1e15).contains(&value) => {
                    assumed.speculation_least_weights = value;
                    continue;
                }
                "speculation" => 0,
                "speculation_low" => 1,
                "speculation_high" => 2,
                _ => return Err(field(&what, value, "left out: it is unknown or out of range")),
            };
            if !(0.1..=100.0).contains(&value) {
                return Err(field(&what, value, "a factor from 0.1 to 100"));
            }
            factors[factor] = Some(value);
        }
        if let Some(factor) = factors[0] {
            let [low, high] = [factors[1], factors[2]].map(|bound| bound.unwrap_or(factor));
            assumed.speculation = Some([factor, low, high]);
        }
        Ok(assumed)
    }
}

/// Notes where a number comes from.
fn take(what: &str, number: Number, sources: &mut Vec<Source>) -> Result<f64, ProfileError> {
    check_text(&format!("{what}.source"), &number.source)?;
    if !number.value.is_finite() {
        return Err(field(what, number.value, "a finite number"));
    }
    let (value, grade, source) = (number.value, number.grade, number.source);
    sources.push(Source { what: what.to_owned(), value, grade, source });
    Ok(value)
}

/// Texts are shown to people: of a sensible length, on one line.
fn check_text(what: &str, text: &str) -> Result<(), ProfileError> {
    if text.is_empty() || text.len() > TEXT_BYTES || text.chars().any(char::is_control) {
        let value = text.chars().take(40).flat_map(char::escape_default).collect::<String>();
        return Err(field(what, value, "1 to 1000 bytes on one line"));
    }
    Ok(())
}

fn field(field: &str, value: impl ToString, allowed: &'static str) -> ProfileError {
    let field = field.chars().take(80).flat_map(char::escape_debug).collect();
    let value = value.to_string().chars().take(80).collect();
    ProfileError::Field { field, value, allowed }
}
