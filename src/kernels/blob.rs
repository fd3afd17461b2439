//! Bytes that do not change, one by one or together.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use super::memory::Region;

/// Bytes in memory of their own, or in one that holds others too.
#[derive(Clone)]
pub enum Blob {
    Own(Arc<Vec<u8>>),
    Part(Arc<Region>, Range<usize>),
}

/// A multiple of the cache's lines.
const APART: usize = 64;

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(Arc::new(bytes))
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Part(memory, range) => &memory[range.clone()],
        }
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Blob {
    /// Moves blobs next to each other, in their order, into one memory with large pages as far as they fill such. Where the system
    /// has no memory for that, they stay where they are.
    pub fn gather<'a>(blobs: impl Iterator<Item = &'a mut Self>) {
        let blobs: Vec<&mut Self> = blobs.collect();
        let mut end = 0;
        let place = |blob: &&mut Self| {
            let start = end;
            end += blob.len().next_multiple_of(APART);
            start..start + blob.len()
        };
        let places: Vec<Range<usize>> = blobs.iter().map(place).collect();
        let Ok(mut memory) = Region::alone(end) else { return };
        for (blob, place) in blobs.iter().zip(&places) {
            memory[place.clone()].copy_from_slice(blob);
        }
        let memory = Arc::new(memory);
        for (blob, place) in blobs.into_iter().zip(places) {
            *blob = Self::Part(Arc::clone(&memory), place);
        }
    }
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
}
