//! Packed weights that were kept: their forms in words, and the way back from words and bytes.
//!
//! What comes from a cache is foreign. A form is compared with what the weight itself says, and the
//! bytes have to be exactly as many as that form takes, so that the kernels find every panel
//! whatever the bytes are.

use super::{
    Offsets, PANEL, Packed, PackedCodes, PackedDense, Scales, bits_of, record_of, records_of,
};
use crate::buffer::Fixed;
use tangor_device::tensor::{Bytes, Layout, Offset, Weight};

/// Raised whenever the same weight is packed into other bytes.
pub(crate) const VERSION: u32 = 2;

impl Packed {
    /// What has to be known, besides the weight that was packed, to find its parts in its bytes.
    pub(crate) fn form(&self) -> String {
        let w = match self {
            Self::Codes(w) => w,
            Self::Dense(_) => return "dense".into(),
        };
        let scales = match w.scales {
            Scales::F16 => "f16",
            Scales::F32 => "f32",
            Scales::Units => "units",
        };
        match w.offsets {
            Offsets::Uniform(zero) => format!("codes {scales} zero {zero}"),
            Offsets::Zero => format!("codes {scales} zeros"),
            Offsets::Min => format!("codes {scales} minima"),
        }
    }

    /// All panels.
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Self::Codes(w) => w.data.bytes(),
            Self::Dense(w) => w.data.bytes(),
        }
    }

    /// The packed form of `weight`, of a form and bytes that were kept; `None` if they cannot be
    /// that.
    pub(crate) fn kept(weight: &Weight, form: &str, data: Bytes) -> Option<Self> {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let data = Fixed::kept(data)?;
        let words: Vec<&str> = form.split(' ').collect();
        let (packed, panel) = match weight.layout()? {
            Layout::Dense(dtype) if words == ["dense"] => {
                let panel = inputs.checked_mul(PANEL * dtype.size())?;
                (Self::Dense(PackedDense { outputs, inputs, dtype, data }), panel)
            }
            Layout::Dense(_) => return None,
            Layout::Quant { bits, group, offset } => {
                let ["codes", scales, ref rest @ ..] = words[..] else { return None };
                let scales = match scales {
                    "f16" => Scales::F16,
                    "f32" => Scales::F32,
                    "units" => Scales::Units,
                    _ => return None,
                };
                let offsets = match (offset, rest) {
                    (Offset::Zero, ["zero", zero]) => Offsets::Uniform(zero.parse().ok()?),
                    (Offset::Zero, ["zeros"]) => Offsets::Zero,
                    (Offset::Min, ["minima"]) => Offsets::Min,
                    _ => return None,
                };
                let group = record_of(bits, group, inputs).ok()?;
                let bits = bits_of(weight, bits, group, offsets);
                let records = records_of(weight, group, scales)?;
                let w =
                    PackedCodes { outputs, inputs, bits, group, records, scales, offsets, data };
                let panel = w.panel_bytes();
                (Self::Codes(w), panel)
            }
        };
        let bytes = panel.checked_mul(outputs.div_ceil(PANEL))?;
        (packed.data().len() == bytes).then_some(packed)
    }

    /// Whether a panel is what `weight` is packed into: packs it once more.
    pub(crate) fn holds(&self, weight: &Weight, panel: usize) -> bool {
        match (self, weight.layout()) {
            (Self::Codes(w), Some(Layout::Quant { group, .. })) => {
                let mut again = vec![0; w.panel_bytes()];
                w.fill_panel(weight, group, panel, &mut again);
                w.panel(panel) == again
            }
            (Self::Dense(w), Some(Layout::Dense(_))) => {
                let mut again = vec![0; w.panel(panel).len()];
                w.fill_panel(weight, panel, &mut again);
                w.panel(panel) == again
            }
            _ => false,
        }
    }
}
