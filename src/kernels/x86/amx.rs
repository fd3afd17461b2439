//! Panels of quantized weights times many int8 rows: a block of 16 rows and 16 outputs in one instruction.
//!
//! Tiles give a block's integer sums; scales and mins meet them as in [`super::avx512::int8`], so the bits are the same. The
//! instructions are written out, since the language has no names for them yet.

use std::{arch::asm, arch::x86_64::*, mem::MaybeUninit, sync::OnceLock};

use super::avx512::{
    formats::{Format, prepare},
    int8::{READY_BLOCKS, Room},
};
use crate::kernels::{
    pack::{BLOCK, PANEL},
    quantize::{BlockSum, QuantizedRows},
};

/// Rows of a tile. With fewer a tile would not pay.
pub const ROWS: usize = 16;

/// Whether the processor has tiles of int8 and the system lets this process use them. The system is asked once.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && system_keeps_tiles() && permitted())
}

fn has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Whether the system saves tiles when it switches threads.
fn system_keeps_tiles() -> bool {
    const CONFIGURATION_AND_DATA: u32 = 1 << 17 | 1 << 18;
    const HAS_XGETBV: u32 = 1 << 27;
    if __cpuid(1).ecx & HAS_XGETBV == 0 {
        return false;
    }
    let (low, _high): (u32, u32);
    // SAFETY: the bit above says that the instruction is there; register 0 always is.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack, preserves_flags)) };
    low & CONFIGURATION_AND_DATA == CONFIGURATION_AND_DATA
}

/// Asks Linux for the use of tiles, which it grants a process for all its threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the request takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// How the tiles are cut: two sets of sums, rows and weights, so that one is filled while the other is read.
#[repr(C, align(64))]
struct Cut {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Cut {
    /// For the inputs of a block, or of its half.
    const fn new(inputs: usize) -> Self {
        let mut cut = Self { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut set = 0;
        while set < 2 {
            (cut.rows[set], cut.row_bytes[set]) = (ROWS as u8, 4 * PANEL as u16);
            (cut.rows[2 + set], cut.row_bytes[2 + set]) = (ROWS as u8, inputs as u16);
            (cut.rows[4 + set], cut.row_bytes[4 + set]) = ((inputs / 4) as u8, 4 * PANEL as u16);
            set += 1;
        }
        cut
    }
}

static BY_BLOCKS: Cut = Cut::new(BLOCK);
static BY_HALVES: Cut = Cut::new(BLOCK / 2);

/// Adds the products of a panel with as many rows as fill whole tiles to `tile`; how many rows these are.
///
/// # Safety
/// Tiles are [`available`]; as of [`super::avx512::int8::panel`], for the panel's `bytes` in the format `F`, of which [`prepare`]
/// makes signed blocks of the kind `P`.
pub(super) unsafe fn whole_tiles<F: Format, P: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tile: &mut [f32]) -> usize {
    let rows = tile.len() / PANEL / ROWS * ROWS;
    let cut: *const Cut = if P::HALVES { &BY_HALVES } else { &BY_BLOCKS };
    let mut room = Room(MaybeUninit::uninit());
    let units = READY_BLOCKS / F::LAYOUT.blocks;
    // SAFETY: the cut is one that the machine knows; a chunk has at most as many blocks as there is room for, and all that is
    // read of them has been written; there are `rows` rows, in `tile` as well.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) cut, options(nostack, preserves_flags, readonly));
        for (chunk, bytes) in bytes.chunks(units * F::LAYOUT.unit()).enumerate() {
            prepare::<F, true>(bytes, room.0.as_mut_ptr().cast());
            let ready = Ready {
                blocks: room.0.as_ptr().cast(),
                count: bytes.len() / F::LAYOUT.unit() * F::LAYOUT.blocks,
                first: chunk * units * F::LAYOUT.blocks,
            };
            for row in (0..rows).step_by(ROWS) {
                one_tile::<P>(&ready, x, row, &mut tile[row * PANEL..(row + ROWS) * PANEL]);
            }
        }
        asm!("tilerelease", options(nomem, nostack, preserves_flags));
    }
    rows
}

/// Blocks that have been prepared, of which the first is block `first` of the panel.
struct Ready {
    blocks: *const u8,
    count: usize,
    first: usize,
}

/// The integer sums of a block, by halves if these have their own scales: `[half, row, output]`.
#[repr(align(64))]
struct Sums(MaybeUninit<[[[i32; PANEL]; ROWS]; 2]>);

/// Adds the products of the blocks with the rows from `row` on to their `tile`.
///
/// # Safety
/// As of [`whole_tiles`]; the tiles are cut, the rows are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn one_tile<P: Format>(ready: &Ready, x: &QuantizedRows<'_>, row: usize, tile: &mut [f32]) {
    let blocks = x.inputs / BLOCK;
    let q = x.q[row * x.inputs + ready.first * BLOCK..].as_ptr();
    let scales = x.scales[row * blocks + ready.first..].as_ptr();
    let sums = x.sums[row * blocks + ready.first..].as_ptr();
    let (mut even, mut odd) = (Sums(MaybeUninit::uninit()), Sums(MaybeUninit::uninit()));
    let (even, odd) = (even.0.as_mut_ptr().cast::<i32>(), odd.0.as_mut_ptr().cast::<i32>());
    let mut totals = [_mm512_setzero_ps(); ROWS];
    // SAFETY: as demanded of the caller; blocks are counted up to as many as there are.
    unsafe {
        for (total, tile) in totals.iter_mut().zip(tile.chunks_exact(PANEL)) {
            *total = _mm512_loadu_ps(tile.as_ptr());
        }
        let block = |index: usize| ready.blocks.add(index * P::LAYOUT.unit());
        let next = |index: usize| (block(index), scales.add(index), sums.add(index));
        // One block's sums are on their way while those of the block before are used.
        dots_of::<P, false>(block(0), q, x.inputs, even);
        for index in (0..ready.count).step_by(2) {
            if index + 1 < ready.count {
                dots_of::<P, true>(block(index + 1), q.add((index + 1) * BLOCK), x.inputs, odd);
            }
            add::<P>(next(index), even, blocks, &mut totals);
            if index + 2 < ready.count {
                dots_of::<P, false>(block(index + 2), q.add((index + 2) * BLOCK), x.inputs, even);
            }
            if index + 1 < ready.count {
                add::<P>(next(index + 1), odd, blocks, &mut totals);
            }
        }
        for (total, tile) in totals.iter().zip(tile.chunks_exact_mut(PANEL)) {
            _mm512_storeu_ps(tile.as_mut_ptr(), *total);
        }
    }
}

/// Writes a block's integer sums, with one of the two sets of tiles.
///
/// # Safety
/// The tiles are cut; `block` is ready, `q` is at that block of [`ROWS`] rows, `stride` apart; `to` has room.
#[inline]
unsafe fn dots_of<P: Format, const ODD: bool>(block: *const u8, q: *const i8, stride: usize, to: *mut i32) {
    /// In the tile registers that are the set's.
    macro_rules! dots {
        ($sums:tt $rows:tt $weights:tt, $q:expr, $body:expr, $to:expr) => {
            asm!(
                concat!("tilezero ", $sums),
                concat!("tileloadd ", $rows, ", [{q} + {stride}*1]"),
                concat!("tileloadd ", $weights, ", [{body} + {line}*1]"),
                concat!("tdpbssd ", $sums, ", ", $rows, ", ", $weights),
                concat!("tilestored [{to} + {line}*1], ", $sums),
                q = in(reg) $q,
                stride = in(reg) stride,
                body = in(reg) $body,
                to = in(reg) $to,
                line = in(reg) 64usize,
                out($sums) _, out($rows) _, out($weights) _,
                options(nostack, preserves_flags),
            )
        };
    }
    let parts = if P::HALVES { 2 } else { 1 };
    for part in 0..parts {
        // SAFETY: as demanded of the caller; a half is 16 inputs, which are 4 of the body's lines.
        unsafe {
            let (q, to) = (q.add(16 * part), to.add(ROWS * PANEL * part));
            let body = block.add(P::LAYOUT.scales + 4 * 64 * part);
            match ODD {
                false => dots!("tmm0" "tmm2" "tmm4", q, body, to),
                true => dots!("tmm1" "tmm3" "tmm5", q, body, to),
            }
        }
    }
}

/// Adds a block's integer sums, scaled, and its mins to the rows' totals.
///
/// # Safety
/// `block` is ready; `dots` are its sums; `scales` and `sums` are at that block of [`ROWS`] rows, `blocks` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add<P: Format>(
    (block, scales, sums): (*const u8, *const f32, *const BlockSum),
    dots: *const i32,
    blocks: usize,
    totals: &mut [__m512; ROWS],
) {
    // SAFETY: as demanded of the caller.
    unsafe {
        let weights = P::scales(P::head(block), block);
        let mins = P::mins(P::head(block), block);
        for (row, total) in totals.iter_mut().enumerate() {
            let part =
                |part: usize| _mm512_cvtepi32_ps(_mm512_load_si512(dots.add((part * ROWS + row) * PANEL).cast()));
            let dot = match P::HALVES {
                true => {
                    let first = _mm512_mul_ps(part(0), P::half_scales(block, 0));
                    _mm512_fmadd_ps(part(1), P::half_scales(block, 1), first)
                }
                false => part(0),
            };
            let scale = _mm512_mul_ps(weights, _mm512_set1_ps(*scales.add(row * blocks)));
            *total = _mm512_fmadd_ps(dot, scale, *total);
            if !P::EXACT {
                let sum = _mm512_set1_ps((*sums.add(row * blocks)).value);
                *total = _mm512_fmadd_ps(mins, sum, *total);
            }
        }
    }
}
