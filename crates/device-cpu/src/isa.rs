//! Which instructions the processor has.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::simd;
use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are compiled for; those that should be faster come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// x86-64 with AVX2, FMA, F16C and AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// 64-bit Arm with NEON and its dot products.
    NeonDotprod,
    /// 64-bit Arm with NEON.
    Neon,
    /// Plain Rust, on any processor.
    Portable,
}

impl Isa {
    /// Every instruction set.
    pub const ALL: [Self; 6] = [
        Self::Avx512Vnni,
        Self::AvxVnni,
        Self::Avx2,
        Self::NeonDotprod,
        Self::Neon,
        Self::Portable,
    ];

    /// Those that this processor can run, in the order of [`Self::ALL`]. Never empty.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest one on this processor, as [`speeds`](crate::speeds) has measured.
    #[must_use]
    pub fn best() -> Self {
        crate::speeds().first().map_or(Self::Portable, |speed| speed.isa)
    }

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => simd::Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => simd::Avx2::<simd::Vnni>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => simd::Avx2::<simd::Maddubs>::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Vnni | Self::AvxVnni | Self::Avx2 => false,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => simd::Neon::<simd::Dotprod>::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => simd::Neon::<simd::Widening>::detect().is_some(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::NeonDotprod | Self::Neon => false,
            Self::Portable => true,
        }
    }

    /// Short and lower case, as options and logs have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512",
            Self::AvxVnni => "avx-vnni",
            Self::Avx2 => "avx2",
            Self::NeonDotprod => "neon-dotprod",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All names, separated by commas.
fn names() -> String {
    Isa::ALL.map(Isa::name).join(", ")
}

/// A name that is no instruction set's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no instruction set is called {0:?} (there are {names})", names = names())]
pub struct UnknownIsa(String);

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let found = Self::ALL.into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}
