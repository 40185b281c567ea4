//! The inverse cosine transform of libjpeg's `jidctint.c`: Loeffler, Ligtenberg and Moschytz, in integers with 13
//! fractional bits, columns first with 2 bits kept in between.

const FRACTION: u32 = 13;
const KEPT: u32 = 2;

/// Coefficients to samples: eight rows of eight, `stride` apart.
pub(super) fn transform(block: &[i16; 64], table: &[u16; 64], out: &mut [u8], stride: usize) -> Option<()> {
    let mut middle = [0i32; 64];
    for (place, (coefficient, factor)) in middle.iter_mut().zip(block.iter().zip(table)) {
        *place = i32::from(*coefficient).wrapping_mul(i32::from(*factor));
    }
    for column in 0..8 {
        let values = one_way(std::array::from_fn(|row| middle[row * 8 + column]), FRACTION - KEPT);
        for (row, value) in values.into_iter().enumerate() {
            middle[row * 8 + column] = value;
        }
    }
    for (row, values) in middle.as_chunks::<8>().0.iter().enumerate() {
        let values = one_way(*values, FRACTION + KEPT + 3);
        let line = out.get_mut(row * stride..)?.first_chunk_mut::<8>()?;
        *line = values.map(|value| value.saturating_add(128).clamp(0, 255) as u8);
    }
    Some(())
}

/// Eight values; the results are rounded to so many fewer bits. It wraps, since a damaged file can hold any numbers.
fn one_way(input: [i32; 8], bits: u32) -> [i32; 8] {
    let [i0, i1, i2, i3, i4, i5, i6, i7] = input;
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;

    let z1 = mul(add(i2, i6), 4_433);
    let even2 = sub(z1, mul(i6, 15_137));
    let even3 = add(z1, mul(i2, 6_270));
    let even0 = add(i0, i4) << FRACTION;
    let even1 = sub(i0, i4) << FRACTION;
    let sums = [add(even0, even3), add(even1, even2), sub(even1, even2), sub(even0, even3)];

    let z5 = mul(add(add(i7, i3), add(i5, i1)), 9_633);
    let z1 = mul(add(i7, i1), -7_373);
    let z2 = mul(add(i5, i3), -20_995);
    let z3 = add(mul(add(i7, i3), -16_069), z5);
    let z4 = add(mul(add(i5, i1), -3_196), z5);
    let odd0 = add(mul(i7, 2_446), add(z1, z3));
    let odd1 = add(mul(i5, 16_819), add(z2, z4));
    let odd2 = add(mul(i3, 25_172), add(z2, z3));
    let odd3 = add(mul(i1, 12_299), add(z1, z4));
    let differences = [odd3, odd2, odd1, odd0];

    let round = |value: i32| add(value, 1 << (bits - 1)) >> bits;
    let mut output = [0; 8];
    for (index, (sum, difference)) in sums.into_iter().zip(differences).enumerate() {
        output[index] = round(add(sum, difference));
        output[7 - index] = round(sub(sum, difference));
    }
    output
}
