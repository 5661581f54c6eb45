//! Plain (unquantised) element types.

use half::{bf16, f16};

/// The type of one stored element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The field's name for it (`f32`, `f16`, `bf16`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Widens little-endian elements to `f32`; both slices hold the same number of elements.
    ///
    /// # Panics
    /// If `bytes.len() != out.len() * self.size()`: the caller has sliced wrongly.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "byte slice does not match {self:?}");
        match self {
            Self::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Bf16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }

    /// Widens the element at `index`; `None` past the end.
    #[must_use]
    pub fn get(self, bytes: &[u8], index: usize) -> Option<f32> {
        let start = index.checked_mul(self.size())?;
        let element = bytes.get(start..start.checked_add(self.size())?)?;
        let mut out = [0.0];
        self.widen(element, &mut out);
        Some(out[0])
    }

    /// Index of the first element that is infinite or not a number.
    #[must_use]
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        // All ones in the exponent.
        match self {
            Self::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .position(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
            Self::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .position(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
            Self::Bf16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .position(|b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
        }
    }
}
