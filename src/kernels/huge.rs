//! Large pages for large memory.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

/// Bytes that do not change, in memory of their own or together with others.
#[derive(Clone, Debug)]
pub struct Blob {
    memory: Arc<Vec<u8>>,
    range: Range<usize>,
}

/// A multiple of the cache's lines.
const APART: usize = 64;

/// What a large page holds.
const LARGE: usize = 2 << 20;

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), memory: Arc::new(bytes) }
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Blob {
    /// Moves blobs next to each other, in their order, into one memory with large pages as far as they fill such.
    pub fn gather<'a>(blobs: impl Iterator<Item = &'a mut Self>) {
        let blobs: Vec<&mut Self> = blobs.collect();
        let bytes: usize = blobs.iter().map(|blob| blob.len().next_multiple_of(APART)).sum();
        let mut memory = vec![0u8; bytes + LARGE];
        let start = memory.as_ptr().align_offset(LARGE);
        // What does not fill a large page would make the last one larger than what it holds.
        ask_for_large_pages(&mut memory[start..start + bytes / LARGE * LARGE]);
        let mut next = start;
        for blob in &blobs {
            memory[next..next + blob.len()].copy_from_slice(blob);
            next += blob.len().next_multiple_of(APART);
        }
        let (memory, mut next) = (Arc::new(memory), start);
        for blob in blobs {
            let range = next..next + blob.len();
            next += blob.len().next_multiple_of(APART);
            *blob = Self { memory: Arc::clone(&memory), range };
        }
    }
}

/// Asks the system to back `memory` with large pages where it may: reading across small ones costs a look-up in the page table for
/// every 4 KiB. Memory that nobody has touched stays untouched. Without effect where there is no such thing.
pub fn ask_for_large_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let bytes = memory.as_mut_ptr_range();
        let (start, end) = ((bytes.start as usize).next_multiple_of(PAGE), bytes.end as usize / PAGE * PAGE);
        if start < end {
            // SAFETY: whole pages of memory that is ours; the advice changes nothing that can be read or written.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::Blob;

    #[test]
    fn gathered_blobs_are_what_they_were() {
        let bytes = |i: u8| vec![i; usize::from(i) * 40_000];
        let mut blobs: Vec<Blob> = (0..100).map(|i| bytes(i).into()).collect();
        Blob::gather(blobs.iter_mut());
        assert!((0..100).zip(&blobs).all(|(i, blob)| **blob == bytes(i)));
        let starts: Vec<usize> = blobs.iter().map(|blob| blob.as_ptr() as usize).collect();
        assert!(starts.is_sorted() && starts.iter().all(|start| start.is_multiple_of(64)), "one memory, line by line");
    }

    #[test]
    fn memory_keeps_what_it_holds() {
        for length in [0usize, 1, 5000, 3 << 20] {
            let mut memory = vec![7u8; length];
            super::ask_for_large_pages(&mut memory);
            assert!(memory.iter().all(|&byte| byte == 7));
        }
    }
}
