//! Memory that starts on a cache line, and slices that several threads write to at once.

use crate::system;
use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use std::marker::PhantomData;
use std::ops::Range;

/// Bytes from which on large pages are worth asking for.
const LARGE: usize = 4 << 20;

/// One cache line, and one AVX-512 register.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: bytes have no invalid patterns.
unsafe impl Zeroable for Line {}

/// Bytes that start on a cache line; new ones are zero.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    bytes: usize,
}

impl Aligned {
    /// `bytes` zeros, or `None` if there is no room.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let lines = bytes.div_ceil(64);
        let boxed = bytemuck::allocation::try_zeroed_slice_box(lines).ok()?;
        let mut memory = Self { lines: Vec::from(boxed), bytes };
        if bytes >= LARGE {
            system::prefer_large_pages(memory.get_mut(bytes));
        }
        Some(memory)
    }

    /// Makes room for at least `bytes`; what was there stays.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.bytes = self.bytes.max(bytes);
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
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
