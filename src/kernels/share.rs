//! Memory that several threads write at the same time, each its own piece: what makes a parallel phase safe to write.

use std::marker::PhantomData;

/// Memory in pieces that do not overlap. [`super::pool::Pool::each`] hands every piece to exactly one call.
///
/// # Safety
/// For different indices below [`Share::pieces`], [`Share::piece`] gives values that may be used at the same time.
pub unsafe trait Share: Sync {
    type Piece;

    fn pieces(&self) -> usize;

    /// # Safety
    /// `index` is below [`Share::pieces`], and each index is asked for at most once.
    unsafe fn piece(&self, index: usize) -> Self::Piece;
}

/// A slice in pieces of one length; the last may be shorter.
pub struct Cut<'a, T> {
    data: *mut T,
    len: usize,
    piece: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: stands for an exclusive slice whose parts go to several threads, as `split_at_mut` would give them.
unsafe impl<T: Send> Sync for Cut<'_, T> {}

/// Cuts a slice into pieces of `piece` values.
///
/// # Panics
/// If `piece` is 0.
pub fn cut<T: Send>(slice: &mut [T], piece: usize) -> Cut<'_, T> {
    assert!(piece > 0, "pieces of nothing");
    Cut { data: slice.as_mut_ptr(), len: slice.len(), piece, slice: PhantomData }
}

// SAFETY: piece `i` is `i · piece .. (i + 1) · piece` of an exclusive slice, so no two overlap.
unsafe impl<'a, T: Send> Share for Cut<'a, T> {
    type Piece = &'a mut [T];

    fn pieces(&self) -> usize {
        self.len.div_ceil(self.piece)
    }

    unsafe fn piece(&self, index: usize) -> &'a mut [T] {
        let start = index * self.piece;
        // SAFETY: `index` is below `pieces`, so `start` lies in the slice; the caller takes each piece once.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.piece.min(self.len - start)) }
    }
}

/// A slice in pieces of different lengths.
pub struct Spans<'a, T> {
    data: *mut T,
    bounds: &'a [usize],
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: as for `Cut`.
unsafe impl<T: Send> Sync for Spans<'_, T> {}

/// Cuts a slice at `bounds`: piece `i` is `bounds[i]..bounds[i + 1]`.
///
/// # Panics
/// If the bounds do not ascend or lie outside the slice.
pub fn spans<'a, T: Send>(slice: &'a mut [T], bounds: &'a [usize]) -> Spans<'a, T> {
    assert!(bounds.is_sorted(), "bounds that go back");
    assert!(bounds.last().is_none_or(|&last| last <= slice.len()), "bounds outside the slice");
    Spans { data: slice.as_mut_ptr(), bounds, slice: PhantomData }
}

// SAFETY: the bounds ascend, so no two pieces overlap.
unsafe impl<'a, T: Send> Share for Spans<'a, T> {
    type Piece = &'a mut [T];

    fn pieces(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    unsafe fn piece(&self, index: usize) -> &'a mut [T] {
        let (start, end) = (self.bounds[index], self.bounds[index + 1]);
        // SAFETY: `spans` has checked that the bounds ascend within the slice; the caller takes each piece once.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), end - start) }
    }
}

/// A grid `[lines, length]` in bands: piece `i` has columns `i · width .. (i + 1) · width` of every line.
pub struct Bands<'a, T> {
    data: *mut T,
    lines: usize,
    length: usize,
    width: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: as for `Cut`.
unsafe impl<T: Send> Sync for Bands<'_, T> {}

/// Cuts a grid of lines of `length` values into bands of `width` columns; the last may be narrower.
///
/// # Panics
/// If `width` is 0, or the values are no whole lines.
pub fn bands<T: Send>(grid: &mut [T], length: usize, width: usize) -> Bands<'_, T> {
    assert!(width > 0, "bands of nothing");
    let lines = grid.len().checked_div(length).unwrap_or(0);
    assert_eq!(grid.len(), lines * length, "lines of {length}");
    Bands { data: grid.as_mut_ptr(), lines, length, width, slice: PhantomData }
}

/// Some columns of every line of a grid.
pub struct Band<'a, T> {
    data: *mut T,
    lines: usize,
    length: usize,
    width: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Band<'_, T> {
    /// Its part of a line.
    ///
    /// # Panics
    /// If there is no such line.
    pub fn line(&mut self, line: usize) -> &mut [T] {
        assert!(line < self.lines, "line {line} of {}", self.lines);
        // SAFETY: the line is there, and these columns of it are this band's alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(line * self.length), self.width) }
    }
}

// SAFETY: bands have different columns, so no two overlap.
unsafe impl<'a, T: Send> Share for Bands<'a, T> {
    type Piece = Band<'a, T>;

    /// As many as `length` has, though there be no line.
    fn pieces(&self) -> usize {
        self.length.div_ceil(self.width)
    }

    unsafe fn piece(&self, index: usize) -> Band<'a, T> {
        let start = index * self.width;
        let width = self.width.min(self.length - start);
        // SAFETY: `start` is below `length`; without lines nothing is read or written there.
        let data = if self.lines == 0 { self.data } else { unsafe { self.data.add(start) } };
        Band { data, lines: self.lines, length: self.length, width, slice: PhantomData }
    }
}

/// Pieces that go together: as many of each.
macro_rules! together {
    ($($part:ident $place:tt),*) => {
        // SAFETY: each part keeps its own promise.
        unsafe impl<$($part: Share),*> Share for ($($part,)*) {
            type Piece = ($($part::Piece,)*);

            fn pieces(&self) -> usize {
                let counts = [$(self.$place.pieces()),*];
                assert!(counts.iter().all(|count| *count == counts[0]), "not as many pieces of each: {counts:?}");
                counts[0]
            }

            unsafe fn piece(&self, index: usize) -> Self::Piece {
                // SAFETY: the caller's promise is that of all parts, which have as many pieces.
                unsafe { ($(self.$place.piece(index),)*) }
            }
        }
    };
}

together!(A 0, B 1);
together!(A 0, B 1, C 2);
together!(A 0, B 1, C 2, D 3);
together!(A 0, B 1, C 2, D 3, E 4);
together!(A 0, B 1, C 2, D 3, E 4, F 5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_slice_once() {
        let mut values: Vec<usize> = vec![0; 10];
        let shared = cut(&mut values, 4);
        assert_eq!(shared.pieces(), 3);
        for index in 0..3 {
            // SAFETY: one piece at a time.
            unsafe { shared.piece(index) }.iter_mut().for_each(|value| *value += index + 1);
        }
        assert_eq!(values, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
        let bounds = [1, 1, 9];
        let shared = spans(&mut values, &bounds);
        // SAFETY: one piece at a time.
        let lengths: Vec<usize> = (0..shared.pieces()).map(|index| unsafe { shared.piece(index) }.len()).collect();
        assert_eq!(lengths, [0, 8]);
    }

    #[test]
    fn bands_cover_a_grid_once() {
        let mut grid: Vec<usize> = vec![0; 3 * 5];
        let shared = bands(&mut grid, 5, 2);
        assert_eq!(shared.pieces(), 3);
        for index in 0..3 {
            // SAFETY: one piece at a time.
            let mut band = unsafe { shared.piece(index) };
            (0..3).for_each(|line| band.line(line).iter_mut().for_each(|value| *value += 10 * line + index));
        }
        assert_eq!(grid, [0, 0, 1, 1, 2, 10, 10, 11, 11, 12, 20, 20, 21, 21, 22]);
        assert_eq!(bands(&mut [0u8; 0], 5, 2).pieces(), 3, "as many where there is no line");
    }

    #[test]
    #[should_panic(expected = "outside the slice")]
    fn bounds_outside_the_slice_are_refused() {
        spans(&mut [0; 3], &[0, 4]);
    }

    #[test]
    #[should_panic(expected = "not as many pieces")]
    fn parts_of_different_counts_are_refused() {
        (cut(&mut [0; 3], 1), cut(&mut [0; 4], 1)).pieces();
    }
}
