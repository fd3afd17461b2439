//! Asking for memory before it is needed.

/// Asks for the memory of `count` values from `first` on, into the nearest cache, to be written. An address that is not ours does
/// no harm.
#[inline]
pub fn fetch_to_write<T>(first: *const T, count: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let (mut line, end) = ((first as usize & !63) as *const i8, first.wrapping_add(count).cast());
        while line < end {
            // SAFETY: a prefetch is no access: any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(line) };
            line = line.wrapping_add(64);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// Asks for the memory of `values`, into the second nearest cache, and does not wait. Without effect where there is no such
/// instruction.
#[inline]
pub fn fetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let bytes = values.as_ptr_range();
        let (mut line, end) = ((bytes.start as usize & !63) as *const i8, bytes.end.cast());
        while line < end {
            // SAFETY: a prefetch is no access: any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
            line = line.wrapping_add(64);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
