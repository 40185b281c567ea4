//! Products of integers beside those of the numbers that they stand for, and beside each other by every instruction
//! set that the processor has.

use super::*;
use crate::kernels::random;

/// The types with a product: their numbers in files, and the places of 16-bit scales in a block.
const TYPES: [(u32, &[usize]); 13] = [
    (2, &[0]),
    (3, &[0, 2]),
    (6, &[0]),
    (7, &[0, 2]),
    (8, &[0]),
    (10, &[80, 82]),
    (11, &[108]),
    (12, &[0, 2]),
    (13, &[0, 2]),
    (14, &[208]),
    (20, &[0]),
    (23, &[0]),
    (39, &[]),
];
/// Rows of the weight: whole panels and what is left.
const OUT_DIM: usize = 37;

/// Blocks of arbitrary bytes with scales of a common size.
fn weight(number: u32, scales: &[usize], out_dim: usize, in_dim: usize) -> QuantizedRows {
    let dtype = GgmlType::from_number(number).unwrap();
    let length = dtype.row_bytes(in_dim).unwrap() * out_dim;
    let block = formats::with_format!(dtype, F => F::BYTES);
    let mut state = number;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u8
    };
    let mut bytes: Vec<u8> = (0..length).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(block) {
        for place in scales {
            let value = (f32::from(next()) - 100.0) / 1e4;
            block[*place..place + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
        if scales.is_empty() {
            block[0] = 115 + next() % 10;
        }
    }
    QuantizedRows { dtype, bytes, out_dim }
}

fn numbers(rows: &QuantizedRows, in_dim: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; rows.out_dim * in_dim];
    rows.dtype.decode(&rows.bytes, &mut numbers);
    numbers
}

/// Widths from one block to several, odd and even numbers of them.
fn widths(number: u32) -> Vec<usize> {
    let dtype = GgmlType::from_number(number).unwrap();
    [32, 64, 96, 160, 256, 512, 768].into_iter().filter(|width| dtype.row_bytes(*width).is_some()).collect()
}

fn input(count: usize, width: usize) -> Vec<f32> {
    random(0.1, 1.0, (count, width)).flatten_all().unwrap().to_vec1().unwrap()
}

/// The numbers that quantized rows stand for.
fn rounded(rows: &EightBitRows, width: usize) -> Vec<f32> {
    let mut values = Vec::new();
    for row in 0..rows.count {
        for block in 0..width / input::BLOCK {
            let block = &rows.blocks[block * rows.count + row];
            let ints = block.quads.iter().flat_map(|quad| quad.to_le_bytes());
            values.extend(ints.map(|value| f32::from(value as i8) * block.scale));
        }
    }
    values
}

fn all_instructions() -> Vec<Instructions> {
    let mut all = vec![Instructions::Plain];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(pulp::x86::V3::try_new().map(Instructions::Avx2));
        all.extend(avx512::Avx512::try_new().map(Instructions::Avx512));
    }
    println!("{all:?}");
    all
}

#[test]
fn every_type_but_plain_floats_has_a_product() {
    for number in 0..=41 {
        let Some(dtype) = GgmlType::from_number(number) else { continue };
        let is_plain = matches!(dtype, GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16);
        assert_eq!(TYPES.iter().any(|(other, _)| *other == number), !is_plain, "{dtype:?}");
        assert_eq!(formats::layout(dtype).is_some(), !is_plain, "{dtype:?}");
    }
}

#[test]
fn products_are_those_of_the_numbers_that_are_stored() {
    for (number, scales) in TYPES {
        for width in widths(number) {
            let rows = weight(number, scales, OUT_DIM, width);
            let (dtype, weights) = (rows.dtype, numbers(&rows, width));
            let rows = IntegerRows::new(rows, width).unwrap();
            for count in [1, 2, 5] {
                let input = EightBitRows::quantize(&input(count, width), width);
                let values = rounded(&input, width);
                let product = rows.multiply(&input);
                for (row, values) in values.chunks_exact(width).enumerate() {
                    for (out, weights) in weights.chunks_exact(width).enumerate() {
                        let products = weights.iter().zip(values).map(|(a, b)| f64::from(*a) * f64::from(*b));
                        let (sum, size) =
                            products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                        let ours = product[out / PANEL * count * PANEL + row * PANEL + out % PANEL];
                        let difference = (f64::from(ours) - sum).abs();
                        // Minima and numbers of one type may cancel each other out.
                        assert!(difference <= 3e-6 * (size + 0.1), "{dtype:?} {width}: {ours} {sum}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_plain_loop() {
    for (number, scales) in TYPES {
        for width in widths(number) {
            for out_dim in [1, 15, 16, OUT_DIM] {
                let rows = IntegerRows::new(weight(number, scales, out_dim, width), width).unwrap();
                for count in [1, 3] {
                    // The largest number of either sign, which instructions add without room to spare.
                    let mut input = input(count, width);
                    input.iter_mut().step_by(7).for_each(|value| *value = 1e3);
                    input.iter_mut().skip(3).step_by(7).for_each(|value| *value = -1e3);
                    let input = EightBitRows::quantize(&input, width);
                    let plain = rows.multiply_by(Instructions::Plain, &input);
                    for instructions in all_instructions() {
                        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        let ours = rows.multiply_by(instructions, &input);
                        assert_eq!(bits(&ours), bits(&plain), "{instructions:?} {:?} {width}", rows.dtype);
                    }
                }
            }
        }
    }
}

/// Bytes at the ends of their ranges, with inputs at the ends of theirs.
#[test]
fn no_sum_overflows() {
    for (number, scales) in TYPES {
        for byte in [0, 0x80, 0x7f, 0xff] {
            let mut rows = weight(number, scales, 16, 256);
            let block = formats::with_format!(rows.dtype, F => F::BYTES);
            let first = scales.first().map_or(1, |_| 0);
            for block in rows.bytes.chunks_exact_mut(block) {
                let kept: Vec<(usize, [u8; 2])> =
                    scales.iter().map(|place| (*place, [block[*place], block[place + 1]])).collect();
                block[first..].fill(byte);
                kept.iter().for_each(|(place, kept)| block[*place..place + 2].copy_from_slice(kept));
            }
            let rows = IntegerRows::new(rows, 256).unwrap();
            for value in [1.0, -1.0] {
                let input = EightBitRows::quantize(&[value; 256], 256);
                let plain = rows.multiply_by(Instructions::Plain, &input);
                for instructions in all_instructions() {
                    assert_eq!(rows.multiply_by(instructions, &input), plain, "{instructions:?} {byte}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_alone_and_among_others_whatever_the_threads() {
    const COUNT: usize = 70;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for (number, scales) in TYPES {
        let rows = IntegerRows::new(weight(number, scales, OUT_DIM, 256), 256).unwrap();
        assert!(rows.panels.bytes() * COUNT / 4 > 1 << 15, "work for several threads");
        let values = input(COUNT, 256);
        let together = pool.install(|| rows.multiply(&EightBitRows::quantize(&values, 256)));
        for (index, values) in values.chunks_exact(256).enumerate() {
            let alone = rows.multiply(&EightBitRows::quantize(values, 256));
            let panels = together.chunks_exact(COUNT * PANEL);
            let among: Vec<f32> = panels.flat_map(|panel| panel[index * PANEL..][..PANEL].to_vec()).collect();
            assert_eq!(alone, among, "{:?}", rows.dtype);
        }
    }
}

#[test]
fn a_row_is_found_again_and_takes_no_more_memory() {
    for (number, scales) in TYPES {
        for out_dim in [48, OUT_DIM, 5] {
            let rows = weight(number, scales, out_dim, 256);
            let (bytes, weights) = (rows.bytes.clone(), numbers(&rows, 256));
            let rows = IntegerRows::new(rows, 256).unwrap();
            let size = bytes.len() / out_dim;
            for (row, (bytes, weights)) in bytes.chunks(size).zip(weights.chunks(256)).enumerate() {
                assert_eq!(rows.panels.row(row), bytes);
                let mut found = vec![0.0; 256];
                rows.row(row, &mut found);
                assert_eq!(found, weights);
            }
            assert_eq!(
                rows.panels.iter().map(<[u8]>::len).sum::<usize>(),
                out_dim.div_ceil(PANEL) * PANEL * size
            );
        }
    }
}

#[test]
fn rows_are_rounded_to_the_nearest_of_255_numbers() {
    let values: Vec<f32> = (0..64).map(|index| (index as f32 - 20.0) * 0.37).collect();
    let rows = EightBitRows::quantize(&values, 64);
    for (block, values) in rows.blocks.iter().zip(values.chunks_exact(32)) {
        let ints: Vec<i8> =
            block.quads.iter().flat_map(|quad| quad.to_le_bytes()).map(|byte| byte as i8).collect();
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        assert_eq!(block.scale, largest / 127.0);
        for (int, value) in ints.iter().zip(values) {
            assert!((f32::from(*int) * block.scale - value).abs() <= block.scale * 0.501);
        }
        let sum = |ints: &[i8]| ints.iter().map(|int| i32::from(*int)).sum::<i32>();
        let sums = [sum(&ints[..16]), sum(&ints[16..]), sum(&ints)];
        assert_eq!(block.negative_sums, sums.map(|sum| -sum));
        assert_eq!(block.sums, sums.map(|sum| sum as f32));
    }
    for value in [0.0, 1e-44, 1e-39] {
        let [block] = EightBitRows::quantize(&[value; 32], 32).blocks[..] else { panic!() };
        assert_eq!(block.quads, [0; 8]);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [1.0; 32];
        values[5] = value;
        assert!(EightBitRows::quantize(&values, 32).blocks[0].scale.is_nan());
    }
}
