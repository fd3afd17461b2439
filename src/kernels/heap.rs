//! What the system's allocator keeps of memory that has been freed.

/// Buffers from this size on come from the system and go back to it. Left to itself, glibc's allocator raises its own limit
/// up to 32 MiB as large buffers are freed, and files and tensors that were read then stay as holes between what lives.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: libc::c_int = 1 << 20;

/// So much free memory may stay at the end of a heap; without it, every other small buffer would go back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SPARE_BYTES: libc::c_int = 4 << 20;

/// Makes the allocator give large buffers back as they are freed. Without effect where it is another than glibc's.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes no pointers; both are numbers that the allocator reads at its next call.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE_BYTES);
        }
    }
}

/// Gives whole pages that are free back to the system: for the end of a start, which leaves many. Takes milliseconds.
/// Without effect where the allocator is another than glibc's.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes no pointers, and touches no memory that is in use.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// Pages in memory of those that lie whole within `bytes` bytes from `address`.
    fn resident_pages(address: usize, bytes: usize) -> usize {
        let first = address.next_multiple_of(PAGE);
        let mut pages = vec![0u8; (address + bytes).saturating_sub(first) / PAGE];
        // SAFETY: asks about pages without touching them; `pages` has a byte for each.
        let known = unsafe { libc::mincore(first as *mut libc::c_void, pages.len() * PAGE, pages.as_mut_ptr()) };
        // Pages that are not mapped at all are an error.
        if known == 0 { pages.iter().filter(|&&page| page & 1 == 1).count() } else { 0 }
    }

    #[test]
    fn what_is_freed_between_things_that_stay_is_given_back() {
        give_back_large_buffers();
        for (bytes, count) in [(8 << 20, 16), (64 << 10, 1024)] {
            let pairs = (0..count).map(|_| (vec![1u8; bytes], vec![1u8; 1000]));
            let (freed, _kept): (Vec<_>, Vec<_>) = pairs.unzip();
            let places: Vec<usize> = freed.iter().map(|buffer| buffer.as_ptr() as usize).collect();
            let resident = || places.iter().map(|&place| resident_pages(place, bytes)).sum::<usize>();
            let before = resident();
            assert!(before >= count * (bytes / PAGE - 1));
            drop(freed);
            give_back_free_memory();
            let after = resident();
            assert!(after < before / 4, "{after} of {before} pages of buffers of {bytes} bytes stay");
        }
    }
}
