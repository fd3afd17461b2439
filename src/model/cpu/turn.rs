//! What an adapter does to finished outputs of one site: `y ← g⊙y + t`, output by output.

use std::ops::Range;

use crate::{kernels::pack::PANEL, model::changes::Change};

/// With a tile that holds `y = base + s·B(Ax)`, all that is left of `b + g⊙(base − b₀) + g⊙s·(B(Ax) + c)`: `t = b − g⊙(b₀ − s·c)`.
/// Each vector is as long as the site's panels; one that would change nothing is not there.
pub struct Turn {
    gain: Option<Vec<f32>>,
    shift: Option<Vec<f32>>,
}

impl Turn {
    /// `None` if outputs are what products make them. `base_bias` is b₀.
    pub fn new(change: &Change, outputs: usize, base_bias: Option<&[f32]>, gain: Option<Vec<f32>>) -> Option<Self> {
        let shifted =
            change.lora_bias.is_some() || change.base_bias.is_some() || (gain.is_some() && base_bias.is_some());
        let shift = shifted.then(|| {
            let scale = change.low_rank.as_ref().map_or(0.0, |low| low.scale);
            let at = |values: Option<&[f32]>, output: usize| values.map_or(0.0, |values| values[output]);
            let shift = |output| {
                let old = at(base_bias, output);
                let new = change.base_bias.as_ref().map_or(old, |bias| bias[output]);
                let added = scale * at(change.lora_bias.as_deref(), output);
                match &gain {
                    Some(gain) => new - gain[output] * (old - added),
                    None => new - old + added,
                }
            };
            padded((0..outputs).map(shift).collect())
        });
        let gain = gain.map(padded);
        (gain.is_some() || shift.is_some()).then_some(Self { gain, shift })
    }

    /// Bytes that it holds.
    pub fn bytes(outputs: usize, gained: bool, shifted: bool) -> usize {
        (usize::from(gained) + usize::from(shifted)) * outputs.next_multiple_of(PANEL) * size_of::<f32>()
    }

    /// Turns the rows `rows` of the tiles of `panels`, `[panels, _, PANEL]`.
    pub fn apply(&self, panels: Range<usize>, rows: &[u32], tiles: &mut [f32]) {
        if panels.is_empty() {
            return;
        }
        let tile = tiles.len() / panels.len();
        for (panel, tile) in panels.zip(tiles.chunks_exact_mut(tile)) {
            let (gain, shift) = (panel_of(&self.gain, panel), panel_of(&self.shift, panel));
            for &row in rows {
                let outputs = &mut tile[row as usize * PANEL..][..PANEL];
                match (gain, shift) {
                    (Some(gain), Some(shift)) => {
                        let turns = gain.iter().zip(shift);
                        outputs.iter_mut().zip(turns).for_each(|(y, (gain, shift))| *y = *y * gain + shift);
                    }
                    (Some(gain), None) => outputs.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain),
                    (None, Some(shift)) => outputs.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift),
                    (None, None) => {}
                }
            }
        }
    }
}

fn panel_of(values: &Option<Vec<f32>>, panel: usize) -> Option<&[f32]> {
    values.as_ref().map(|values| &values[panel * PANEL..(panel + 1) * PANEL])
}

fn padded(mut values: Vec<f32>) -> Vec<f32> {
    values.resize(values.len().next_multiple_of(PANEL), 0.0);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Matrix, changes::LowRank, lora::Values};

    #[test]
    fn only_named_rows_are_turned_and_by_the_whole_formula() {
        let ones = || Matrix { rows: 1, cols: 1, values: Values::F32(vec![1.0]) };
        let change = Change {
            low_rank: Some(LowRank { a: ones(), b: ones(), scale: 2.0 }),
            lora_bias: Some(vec![3.0; 20]),
            base_bias: Some(vec![7.0; 20]),
            ..Change::default()
        };
        let turn = Turn::new(&change, 20, Some(&[5.0; 20]), Some(vec![0.5; 20])).unwrap();
        let panels = 20usize.div_ceil(PANEL);
        let mut tiles = vec![11.0; panels * 3 * PANEL];
        turn.apply(0..panels, &[0, 2], &mut tiles);
        for (at, value) in tiles.iter().enumerate() {
            let (row, output) = (at / PANEL % 3, at / PANEL / 3 * PANEL + at % PANEL);
            // b + g·(y − b₀) + g·s·c
            let expected = if output >= 20 { 0.0 } else { 7.0 + 0.5 * (11.0 - 5.0) + 0.5 * 2.0 * 3.0 };
            assert_eq!(*value, if row == 1 { 11.0 } else { expected }, "row {row}, output {output}");
        }
    }

    #[test]
    fn a_change_by_products_alone_turns_nothing() {
        assert!(Turn::new(&Change::default(), 20, Some(&[5.0; 20]), None).is_none());
    }
}
