//! Memory that starts on a cache line, and slices that several threads write to at once.

use crate::system;
use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use std::alloc::Layout;
use std::marker::PhantomData;
use std::ops::Range;
use tangor_device::tensor::Bytes;

/// Bytes from which on large pages are worth asking for, and having them ready.
pub(crate) const LARGE: usize = 4 << 20;

/// A cache line, and an AVX-512 register.
const LINE: usize = 64;

/// What memory is asked for in. Allocators hand out zeros that are still the system's, and take no
/// memory before they are written to, only at alignments that every allocation has.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
struct Piece([u8; 16]);

// SAFETY: bytes have no invalid patterns.
unsafe impl Zeroable for Piece {}

/// Bytes that start on a cache line; new ones are zero, and take no memory before they are used.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    pieces: Box<[Piece]>,
    /// Bytes before the first cache line.
    skip: usize,
    bytes: usize,
}

impl Aligned {
    /// `bytes` zeros for much that will be streamed, or `None` if there is no room.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let mut memory = Self::small(bytes)?;
        if bytes >= LARGE {
            system::prefer_large_pages(memory.get_mut(bytes));
        }
        Some(memory)
    }

    /// `bytes` zeros, in pages of the usual size: parts of them may stay untouched.
    fn small(bytes: usize) -> Option<Self> {
        if bytes == 0 {
            return Some(Self::default());
        }
        let pieces = bytes.checked_next_multiple_of(LINE)?.checked_add(LINE)? / size_of::<Piece>();
        let pieces: Box<[Piece]> = bytemuck::allocation::try_zeroed_slice_box(pieces).ok()?;
        let skip = pieces.as_ptr().cast::<u8>().align_offset(LINE);
        Some(Self { pieces, skip, bytes })
    }

    /// Makes room for at least `bytes`; what was there stays.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        if bytes > self.bytes {
            let Some(mut larger) = Self::small(bytes) else {
                std::alloc::handle_alloc_error(
                    Layout::array::<Piece>(bytes / 16).unwrap_or(Layout::new::<Piece>()),
                )
            };
            let old = self.bytes;
            larger.get_mut::<u8>(old).copy_from_slice(self.get(old));
            *self = larger;
        }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        // SAFETY: `skip` is within the memory, or zero where there is none.
        unsafe { self.pieces.as_ptr().cast::<u8>().add(self.skip) }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.pieces.as_mut_ptr().cast::<u8>().add(self.skip) }
    }

    /// The first `len` elements.
    #[inline(always)]
    pub(crate) fn get<T: AnyBitPattern>(&self, len: usize) -> &[T] {
        assert!(len * size_of::<T>() <= self.bytes && align_of::<T>() <= 64);
        // SAFETY: the memory is there, aligned and initialised, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), len) }
    }

    /// The first `len` elements.
    pub(crate) fn get_mut<T: AnyBitPattern + NoUninit>(&mut self, len: usize) -> &mut [T] {
        assert!(len * size_of::<T>() <= self.bytes && align_of::<T>() <= 64);
        // SAFETY: the memory is there, aligned, initialised and ours, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), len) }
    }
}

/// Bytes that are only read: this process's own, or kept from an earlier one.
#[derive(Debug)]
pub(crate) enum Fixed {
    /// Packed by this process.
    Own(Aligned),
    /// Kept elsewhere, from a cache line on; as a rule mapped.
    Kept(Bytes),
}

impl Fixed {
    /// Kept bytes, if they start on a cache line.
    pub(crate) fn kept(bytes: Bytes) -> Option<Self> {
        bytes.as_ptr().addr().is_multiple_of(LINE).then_some(Self::Kept(bytes))
    }

    /// All of them.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(memory) => memory.get(memory.len()),
            Self::Kept(bytes) => bytes,
        }
    }
}

/// A slice whose disjoint parts several threads write to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose users promise to touch disjoint parts.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Where it begins.
    #[inline(always)]
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// The part `range`.
    ///
    /// # Safety
    /// Nobody else uses an overlapping part at the same time.
    ///
    /// # Panics
    /// If the range is past the end.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds, and the caller promises that it is the only user.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
