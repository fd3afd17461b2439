use half::{bf16, f16};

use super::*;

/// Every encoding, with its name in failures.
pub(in crate::kernels) const ENCODINGS: [Encoding; 11] = [
    Encoding::F32,
    Encoding::F16,
    Encoding::BF16,
    Encoding::Q8_0,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q5_0,
    Encoding::Q5_1,
    Encoding::Q4K,
    Encoding::Q5K,
    Encoding::Q6K,
];

/// Numbers from a linear congruential generator.
pub(in crate::kernels) struct Noise(pub u32);

impl Noise {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// In [-1, 1).
    pub fn float(&mut self) -> f32 {
        self.bits() as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Encoded weights: any integers at all, and scales of a likely size.
    pub fn weights(&mut self, encoding: Encoding, values: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..encoding.bytes_for(values).unwrap()).map(|_| (self.bits() >> 8) as u8).collect();
        for block in bytes.chunks_exact_mut(encoding.block_bytes()) {
            let halves: &[usize] = match encoding {
                Encoding::F32 => {
                    block.copy_from_slice(&self.float().to_le_bytes());
                    &[]
                }
                Encoding::BF16 => {
                    block.copy_from_slice(&bf16::from_f32(self.float()).to_le_bytes());
                    &[]
                }
                Encoding::F16 | Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => &[0],
                Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => &[0, 2],
                Encoding::Q6K => &[208],
            };
            for &at in halves {
                block[at..at + 2].copy_from_slice(&f16::from_f32(self.float()).to_le_bytes());
            }
        }
        bytes
    }

    pub fn packed(&mut self, encoding: Encoding, outputs: usize, inputs: usize) -> Packed {
        let bytes = self.weights(encoding, outputs * inputs);
        let row = encoding.bytes_for(inputs).unwrap();
        Packed::pack(encoding, outputs, inputs, |i| &bytes[i * row..(i + 1) * row]).unwrap()
    }
}

#[test]
fn a_packed_row_is_the_files_row_bit_for_bit() {
    for encoding in ENCODINGS {
        let (outputs, inputs) = (37, if encoding.block_values() == 1 { 75 } else { 768 });
        let bytes = Noise(3).weights(encoding, outputs * inputs);
        let row_bytes = encoding.bytes_for(inputs).unwrap();
        let row = |i: usize| &bytes[i * row_bytes..(i + 1) * row_bytes];
        let packed = Packed::pack(encoding, outputs, inputs, row).unwrap();
        assert_eq!(packed.panels(), 3);
        let (mut expected, mut got) = (vec![0.0; inputs], vec![0.0; inputs]);
        for output in 0..outputs {
            decode(encoding, row(output), &mut expected);
            packed.row(output, &mut got);
            let same = got.iter().zip(&expected).all(|(got, expected)| got.to_bits() == expected.to_bits());
            assert!(same, "{} row {output}", encoding.name());
        }
    }
}

#[test]
fn packed_weights_take_about_the_files_memory() {
    for encoding in ENCODINGS {
        let (outputs, inputs) = (32, 1024);
        let packed = Noise(5).packed(encoding, outputs, inputs);
        let file = encoding.bytes_for(outputs * inputs).unwrap();
        assert!(packed.bytes() <= file + file / 32, "{}: {} for {file}", encoding.name(), packed.bytes());
        assert_eq!(packed.bytes(), packed.panels() * packed.panel_bytes());
    }
}

#[test]
fn panels_filled_apart_are_those_filled_at_once() {
    let (outputs, inputs) = (70, 64);
    let bytes = Noise(9).weights(Encoding::Q4_1, outputs * inputs);
    let row = |i: usize| &bytes[i * 40..(i + 1) * 40];
    let whole = Packed::pack(Encoding::Q4_1, outputs, inputs, row).unwrap();
    let mut apart = Packed::zeroed(Encoding::Q4_1, outputs, inputs).unwrap();
    let slots: Vec<Slot<'_>> = apart.slots(2).collect();
    assert_eq!(slots.iter().map(Slot::outputs).collect::<Vec<_>>(), [0..32, 32..64, 64..70]);
    std::thread::scope(|scope| {
        slots.into_iter().rev().for_each(|slot| {
            scope.spawn(move || slot.fill(row).unwrap());
        });
    });
    (0..5).for_each(|panel| assert_eq!(apart.panel(panel), whole.panel(panel)));
}

#[test]
fn panels_begin_on_a_registers_boundary() {
    for encoding in ENCODINGS {
        let packed = Noise(1).packed(encoding, 33, 256);
        (0..3).for_each(|panel| assert_eq!(packed.panel(panel).as_ptr() as usize % 32, 0));
    }
}

#[test]
fn widths_and_rows_that_do_not_fit_are_refused() {
    let fault = Packed::zeroed(Encoding::Q4K, 4, 96).err();
    assert_eq!(fault, Some(PackFault::Width { encoding: Encoding::Q4K, inputs: 96 }));
    let fault = Packed::zeroed(Encoding::Q8_0, usize::MAX, 32).err();
    assert_eq!(fault, Some(PackFault::TooLarge { outputs: usize::MAX, inputs: 32 }));
    let fault = Packed::pack(Encoding::Q8_0, 2, 32, |row| if row == 0 { &[0; 34] } else { &[0; 33] }).err();
    assert_eq!(fault, Some(PackFault::Row { row: 1, got: 33, expected: 34 }));
    assert!(Packed::pack(Encoding::F16, 0, 3, |_| &[]).is_ok_and(|packed| packed.panels() == 0));
}
