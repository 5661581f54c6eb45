//! The loops that do the arithmetic. Each file opens with what it computes; each kernel has one
//! safe entry that checks lengths and one [`Op`](crate::simd::Op) that is compiled for every
//! instruction set.

pub(crate) mod attention;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod pairs;
pub(crate) mod quantise;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod tile;

#[cfg(test)]
mod tests;
