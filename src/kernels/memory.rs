//! Memory for weights: zeroed, in large pages where the system has them, many matrices in one.
//!
//! Every step reads all weights. In small pages the processor spends much of that time on finding out where they are, and its
//! own prefetch stops at each page's end.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use memmap2::{MmapMut, MmapRaw};

/// A large page.
const PAGE: usize = 2 << 20;

/// What is asked of the system at once, if nothing larger is wanted.
const CHUNK: usize = 16 * PAGE;

/// A multiple of the widest register and of a cache line.
const ALIGN: usize = 64;

/// Gives out memory, piece after piece of large chunks. A chunk lives as long as a piece of it.
#[derive(Default)]
pub struct Memory {
    chunk: Option<Arc<Chunk>>,
    used: usize,
}

impl Memory {
    /// Zeroed memory of this size.
    ///
    /// # Errors
    /// If the system has none.
    pub fn take(&mut self, bytes: usize) -> io::Result<Region> {
        let room = |chunk: &&Arc<Chunk>| bytes <= chunk.len - self.used;
        let chunk = match self.chunk.as_ref().filter(room) {
            Some(chunk) => Arc::clone(chunk),
            None => {
                self.used = 0;
                Arc::clone(self.chunk.insert(Arc::new(Chunk::new(bytes.max(CHUNK))?)))
            }
        };
        let start = self.used;
        self.used = (start + bytes).next_multiple_of(ALIGN).min(chunk.len);
        Ok(Region { chunk, start, bytes })
    }
}

struct Chunk {
    map: MmapRaw,
    start: usize,
    len: usize,
}

impl Chunk {
    /// Of a page or more, from a page's beginning; of less, as it comes.
    fn new(bytes: usize) -> io::Result<Self> {
        let large = bytes >= PAGE;
        let mut map = MmapMut::map_anon(if large { bytes.next_multiple_of(PAGE) + PAGE } else { bytes.max(1) })?;
        let start = if large { map.as_ptr().align_offset(PAGE) } else { 0 };
        // What does not fill a large page would make the last one larger than what it holds.
        ask_for_large_pages(&mut map[start..start + bytes / PAGE * PAGE]);
        Ok(Self { start, len: bytes, map: MmapRaw::from(map) })
    }
}

/// A piece of memory of one's own, from an address that is a multiple of a cache line.
pub struct Region {
    chunk: Arc<Chunk>,
    start: usize,
    bytes: usize,
}

impl Region {
    /// Memory that shares no chunk.
    ///
    /// # Errors
    /// If the system has none.
    pub fn alone(bytes: usize) -> io::Result<Self> {
        Ok(Self { chunk: Arc::new(Chunk::new(bytes)?), start: 0, bytes })
    }

    fn at(&self) -> *mut u8 {
        self.chunk.map.as_mut_ptr().wrapping_add(self.chunk.start + self.start)
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: these bytes of the chunk are this value's alone, zeroed when they were mapped, and mapped as long as it lives.
        unsafe { std::slice::from_raw_parts(self.at(), self.bytes) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: likewise.
        unsafe { std::slice::from_raw_parts_mut(self.at(), self.bytes) }
    }
}

/// Asks the system to back `memory` with large pages where it may: reading across small ones costs a look-up in the page table for
/// every 4 KiB. Memory that nobody has touched stays untouched. Without effect where there is no such thing.
pub fn ask_for_large_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const SMALL: usize = 4096;
        let bytes = memory.as_mut_ptr_range();
        let (start, end) = ((bytes.start as usize).next_multiple_of(SMALL), bytes.end as usize / SMALL * SMALL);
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
    use super::*;

    #[test]
    fn pieces_are_zeroed_aligned_and_apart() {
        let mut memory = Memory::default();
        let sizes = [1, 64, 65, PAGE + 3, 0, CHUNK - PAGE, CHUNK + 1, 7, 2 * CHUNK];
        let mut regions: Vec<Region> = sizes.iter().map(|&size| memory.take(size).expect("memory")).collect();
        regions.push(Region::alone(100).expect("memory"));
        for (number, region) in (1..).zip(&mut regions) {
            assert!(region.as_ptr().addr().is_multiple_of(ALIGN));
            assert!(region.iter().all(|&byte| byte == 0));
            region.fill(number);
        }
        for ((number, region), size) in (1..).zip(&regions).zip(sizes.into_iter().chain([100])) {
            assert_eq!(region.len(), size);
            assert!(region.iter().all(|&byte| byte == number));
        }
    }

    #[test]
    fn a_piece_outlives_the_memory_that_gave_it() {
        let mut memory = Memory::default();
        let mut region = memory.take(1000).expect("memory");
        drop(memory);
        region.fill(9);
        assert!(region.iter().all(|&byte| byte == 9));
    }

    #[test]
    fn memory_keeps_what_it_holds() {
        for length in [0usize, 1, 5000, 3 << 20] {
            let mut memory = vec![7u8; length];
            ask_for_large_pages(&mut memory);
            assert!(memory.iter().all(|&byte| byte == 7));
        }
    }
}
