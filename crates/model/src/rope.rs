//! Rotary position embedding: the frequencies of every scaling scheme as data.
//!
//! A pair of elements of a head at position `p` is rotated by `p * inv_freq[i]`, and the result is
//! multiplied by `factor`. Schemes that treat long sequences differently (LongRoPE) have two
//! variants; which one a sequence uses depends on how long it is, never on how it is chunked.

use std::sync::Arc;

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements of a head that are rotated (the first ones); even, at most `head_dim`.
    pub dim: usize,
    /// Whether pairs are neighbours (`0,1`), not halves (`0,dim/2`).
    pub interleaved: bool,
    /// Used while a sequence is at most `long.0` tokens, and for ever where there is no `long`.
    pub short: Angles,
    /// Longest length for `short`, and what takes its place beyond.
    pub long: Option<(usize, Angles)>,
}

/// Angles per position.
#[derive(Clone, Debug, PartialEq)]
pub enum Angles {
    /// `cos(p * inv_freq[i]) * factor` and the same with `sin`; products in `f32`.
    Frequencies {
        /// `dim / 2` radians per position.
        inv_freq: Vec<f32>,
        /// Factor on both.
        factor: f32,
    },
    /// Tables that came with the file, `(positions, dim / 2)`; shared, since they are as large as
    /// the context is long and every rewrite of a graph copies its rotary embedding.
    Table {
        /// Cosines, factor included.
        cos: Arc<[f32]>,
        /// Sines, factor included.
        sin: Arc<[f32]>,
    },
}

impl Rope {
    /// No rotation at all (for graphs that rotate nothing).
    #[must_use]
    pub fn none() -> Self {
        Self {
            dim: 0,
            interleaved: false,
            short: Angles::Frequencies { inv_freq: Vec::new(), factor: 1.0 },
            long: None,
        }
    }

    /// The angles for sequences of `tokens` tokens in all.
    #[must_use]
    pub fn angles(&self, variant: Variant) -> &Angles {
        match (&self.long, variant) {
            (Some((_, long)), Variant::Long) => long,
            _ => &self.short,
        }
    }

    /// The variant that a sequence of `tokens` tokens uses, for all its positions.
    #[must_use]
    pub fn variant(&self, tokens: usize) -> Variant {
        match &self.long {
            Some((limit, _)) if tokens > *limit => Variant::Long,
            _ => Variant::Short,
        }
    }
}

/// Which of a [`Rope`]'s angles a sequence uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Up to the original context.
    #[default]
    Short,
    /// Beyond it.
    Long,
}

impl Angles {
    /// Writes cosines and sines of `position`, `dim / 2` each. Positions past the end of a table
    /// repeat its last row; graphs bound their context so that there are none.
    pub fn at(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        match self {
            Self::Frequencies { inv_freq, factor } => {
                #[allow(clippy::cast_precision_loss)]
                let position = position as f32;
                for ((cos, sin), freq) in cos.iter_mut().zip(sin.iter_mut()).zip(inv_freq) {
                    let (s, c) = (position * freq).sin_cos();
                    *cos = c * factor;
                    *sin = s * factor;
                }
            }
            Self::Table { cos: all_cos, sin: all_sin } => {
                let half = cos.len();
                let rows = all_cos.len() / half.max(1);
                let row = position.min(rows.saturating_sub(1)) * half;
                cos.copy_from_slice(&all_cos[row..row + half]);
                sin.copy_from_slice(&all_sin[row..row + half]);
            }
        }
    }
}
