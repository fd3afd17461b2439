//! What this machine can do at best, measured: the bounds that a step's phases are held against.

use std::{hint::black_box, time::Instant};

use super::{
    caches,
    dequant::Encoding,
    isa::Isa,
    matmul::{panel_f32, panel_int8},
    memory::Region,
    pack::{BLOCK, PANEL, PackFault, Packed},
    pool::Pool,
    quantize::{BlockSum, QuantizedRows},
    scan::{Gait, Line, scan},
    share::cut,
};

/// Rates over all threads of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes per second, read from memory in order: no kernel reads faster what no cache holds. `None` where too little memory is
    /// free to read that much beyond the caches.
    pub read: Option<f64>,
    /// Multiplications with addition per second of the matrix kernel for one encoding, everything in the nearest cache.
    pub multiply: f64,
}

/// Bytes that one thread reads before it takes the next piece.
const PIECE: usize = 4 << 20;

/// Passes over the memory in the gait that was the fastest in its first.
const PASSES: usize = 4;

/// Rows and inputs of the product that is timed: small enough for the nearest cache, enough rows to fill register tiles.
const ROWS: usize = 16;
const INPUTS: usize = 256;

/// Repetitions of the product in one piece of work, and pieces for each thread.
const REPEAT: usize = 200;
const PIECES: usize = 8;

/// Timings of which the best counts.
const TRIES: usize = 7;

/// Measures the threads of `pool`: about as long as it takes to read the last-level cache's size from memory sixty times.
///
/// # Errors
/// [`PackFault`] if no weights can be packed in `encoding`.
pub fn measure(pool: &mut Pool, isa: Isa, encoding: Encoding, int8: bool) -> Result<Limits, PackFault> {
    Ok(Limits { read: read(pool, isa), multiply: multiply(pool, isa, encoding, int8)? })
}

fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..TRIES).map(|_| run()).fold(0.0, f64::max)
}

fn read(pool: &mut Pool, isa: Isa) -> Option<f64> {
    // In large pages, as weights are.
    let mut memory = Region::alone(caches::beyond()?).ok()?;
    // Before it is written, memory is one page of zeros.
    pool.each(cut(&mut memory, PIECE), |_, piece| piece.fill(1));
    let lines = memory.as_chunks().0;
    let mut sums = vec![0u64; memory.len().div_ceil(PIECE)];
    let mut pass = |gait: Gait| {
        let began = Instant::now();
        pool.each(cut(&mut sums, 1), |index, sum| {
            let lines = lines.chunks(PIECE / size_of::<Line>()).nth(index).unwrap_or_default();
            sum[0] = scan(isa, gait, lines);
        });
        black_box(&sums);
        memory.len() as f64 / began.elapsed().as_secs_f64()
    };
    let first = Gait::ALL.map(|gait| (pass(gait), gait));
    let (fast, gait) = first.into_iter().max_by(|one, other| one.0.total_cmp(&other.0))?;
    Some((0..PASSES).map(|_| pass(gait)).fold(fast, f64::max))
}

fn multiply(pool: &mut Pool, isa: Isa, encoding: Encoding, int8: bool) -> Result<f64, PackFault> {
    let row = vec![0u8; encoding.bytes_for(INPUTS).unwrap_or(0)];
    let weights = Packed::pack(encoding, PANEL, INPUTS, |_| &row)?;
    let floats = vec![0.5f32; ROWS * INPUTS];
    let (q, scales) = (vec![3i8; ROWS * INPUTS], vec![0.1f32; ROWS * INPUTS / BLOCK]);
    let sums = vec![BlockSum { value: 0.1 * 96.0, halves: [48; 2] }; ROWS * INPUTS / BLOCK];
    let quantized = QuantizedRows { inputs: INPUTS, q: &q, scales: &scales, sums: &sums };
    let pieces = PIECES * pool.threads();
    let mut tiles = vec![0.0f32; pieces * ROWS * PANEL];
    Ok(best(|| {
        let began = Instant::now();
        pool.each(cut(&mut tiles, ROWS * PANEL), |_, tile| {
            for _ in 0..REPEAT {
                match int8 && weights.takes_int8() {
                    true => panel_int8(isa, &weights, 0, &quantized, tile),
                    false => panel_f32(isa, &weights, 0, &floats, tile),
                }
                black_box(&tile);
            }
        });
        (pieces * REPEAT * ROWS * INPUTS * PANEL) as f64 / began.elapsed().as_secs_f64()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rates_for_every_kind_of_weights() {
        let mut pool = Pool::new(2).expect("threads");
        for (encoding, int8) in [(Encoding::Q8_0, true), (Encoding::Q4_1, true), (Encoding::F16, false)] {
            let rate = multiply(&mut pool, Isa::best(), encoding, int8).expect("packed");
            assert!(rate.is_finite() && rate > 0.0, "{encoding:?}: {rate}");
        }
    }
}
