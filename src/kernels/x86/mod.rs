//! The kernels in AVX2, FMA and F16C. Everything here may run only where [`Level::Avx2`](super::isa::Level) says so.
//!
//! The small functions that each kernel is built of are always inlined into it, and so compiled with its instructions.

mod formats;

pub(super) mod float;
pub(super) mod int8;
pub(super) mod quantize;

/// Calls `run(first, count)` for runs of at most `most` rows, as even as they can be.
fn share(rows: usize, most: usize, mut run: impl FnMut(usize, usize)) {
    let runs = rows.div_ceil(most);
    (0..runs).for_each(|i| run(i * rows / runs, (i + 1) * rows / runs - i * rows / runs));
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_are_shared_evenly_and_all_of_them() {
        for rows in 0..100 {
            let mut next = 0;
            super::share(rows, 6, |first, count| {
                assert!(first == next && (1..=6).contains(&count) && (rows < 7 || count >= 3), "{rows}");
                next += count;
            });
            assert_eq!(next, rows);
        }
    }
}
