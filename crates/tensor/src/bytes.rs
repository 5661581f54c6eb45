//! Checked sizes: the only way from a count in a file to a number of bytes.

/// A size that does not fit the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tensor of {elements:?} elements is larger than the address space")]
pub struct ByteLenError {
    /// Elements, where their count itself is representable.
    pub elements: Option<usize>,
}

/// Product of dimensions.
///
/// # Errors
/// If it overflows.
pub fn checked_product(dims: &[usize]) -> Result<usize, ByteLenError> {
    dims.iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .ok_or(ByteLenError { elements: None })
}

/// Bytes of `elements` stored in blocks of `block_len` elements and `block_bytes` bytes each.
/// `elements` must be a multiple of `block_len`: `None` inside `Ok` says that it is not.
///
/// # Errors
/// If the product overflows.
pub fn byte_len(
    elements: usize,
    block_len: usize,
    block_bytes: usize,
) -> Result<Option<usize>, ByteLenError> {
    if block_len == 0 || !elements.is_multiple_of(block_len) {
        return Ok(None);
    }
    (elements / block_len)
        .checked_mul(block_bytes)
        .map(Some)
        .ok_or(ByteLenError { elements: Some(elements) })
}
