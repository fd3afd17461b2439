use super::*;

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    // Numbers that every precision keeps exactly.
    (0..count).map(|_| (next() * 64.0).round() / 64.0).collect()
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::BF16];

/// A stack of factors, and its delta for rows `rows` of `x` on top of `tile`.
struct Case {
    inputs: usize,
    outputs: usize,
    rank: usize,
    first: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new(inputs: usize, outputs: usize, rank: usize, first: usize) -> Self {
        let ranks = first + rank + 3;
        Self { inputs, outputs, rank, first, a: noise(ranks * inputs, 1), b: noise(outputs * rank, 2) }
    }

    /// `[panels, tile_rows, PANEL]`
    fn ours(&self, isa: Isa, precision: Precision, x: &[f32], rows: &[u32], tile_rows: usize) -> Vec<f32> {
        let a = Shrink::pack(precision, self.a.len() / self.inputs, self.inputs, &self.a);
        let b = Expand::pack(precision, self.rank, self.first, 0.5, &self.b);
        let mut shrunk = vec![f32::NAN; a.groups() * rows.len() * RANKS];
        for (group, out) in shrunk.chunks_mut((rows.len() * RANKS).max(1)).enumerate() {
            shrink(isa, &a, group, x, rows, out);
        }
        let mut tiles = vec![1.0; self.outputs.div_ceil(PANEL) * tile_rows * PANEL];
        for (panel, tile) in tiles.chunks_mut(tile_rows * PANEL).enumerate() {
            expand(isa, &b, panel, &shrunk, rows, tile);
        }
        tiles
    }
}

#[test]
fn the_delta_is_scale_times_b_times_a_times_x_for_the_listed_rows_alone() {
    let tile_rows = 9;
    for (inputs, outputs, rank, first) in [(64, 32, 16, 0), (37, 20, 1, 5), (12, 16, 9, 8), (130, 48, 24, 11)] {
        let case = Case::new(inputs, outputs, rank, first);
        let x = noise(tile_rows * inputs, 3);
        for rows in [vec![], vec![4u32], vec![0, 8], vec![0, 1, 2, 3, 4, 5, 6, 7, 8]] {
            for (isa, precision) in Isa::all().into_iter().flat_map(|i| PRECISIONS.map(|p| (i, p))) {
                let ours = case.ours(isa, precision, &x, &rows, tile_rows);
                for (index, ours) in ours.iter().enumerate() {
                    let (panel, row, place) = (index / PANEL / tile_rows, index / PANEL % tile_rows, index % PANEL);
                    let output = panel * PANEL + place;
                    let mut exact = 1.0;
                    if output < outputs && rows.contains(&(row as u32)) {
                        for r in 0..rank {
                            let a = &case.a[(first + r) * inputs..][..inputs];
                            let t: f64 = a.iter().zip(&x[row * inputs..]).map(|(a, x)| f64::from(a * x)).sum();
                            exact += 0.5 * t * f64::from(case.b[output * rank + r]);
                        }
                    }
                    assert!((f64::from(*ours) - exact).abs() < 1e-4, "row {row}, output {output}: {ours}, not {exact}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_among_others() {
    let case = Case::new(70, 32, 13, 2);
    let x: Vec<f32> = noise(11 * 70, 9).iter().map(|x| x * 0.37).collect();
    for (isa, precision) in Isa::all().into_iter().flat_map(|i| PRECISIONS.map(|p| (i, p))) {
        let rows: Vec<u32> = (0..11).collect();
        let together = case.ours(isa, precision, &x, &rows, 11);
        for row in 0..11usize {
            let alone = case.ours(isa, precision, &x, &[row as u32], 11);
            for panel in 0..2 {
                let at = (panel * 11 + row) * PANEL;
                assert_eq!(together[at..at + PANEL], alone[at..at + PANEL], "row {row}");
            }
        }
    }
}
