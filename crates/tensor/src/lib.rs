//! What numbers look like in memory: element types, checked byte lengths, and weights in every
//! form that a checkpoint may store them in.
//!
//! Everything above this crate sees a [`Weight`]: a matrix of `rows x cols` that can hand out any
//! row, either as `f32` or, if it is quantised, as unsigned codes with one scale and one offset per
//! group. A device packs what it is handed into the layout that its kernels like; nothing else in
//! the project knows how a block format arranges its bits. One block format is one file in
//! [`quant`].

mod bytes;
mod dtype;
mod map;
pub mod quant;
mod stamp;
mod weight;

pub use crate::bytes::{ByteLenError, byte_len, checked_product};
pub use crate::dtype::DType;
pub use crate::map::{
    FileChanged, MapGuard, check_mapped, map_file, map_file_in_large_pages, release,
};
pub use crate::stamp::Stamp;
pub use crate::weight::{Group, Layout, Offset, RowOrder, Scales, Weight, WeightError, Zeros};
pub use ::bytes::Bytes;
