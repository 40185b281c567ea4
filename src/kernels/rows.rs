//! Loops over rows of numbers on the processor: activations, softmax and layer norm, each compiled for every
//! instruction set that matters and chosen at run time. Sums are kept in lanes, which lets the compiler use
//! whole registers. The distribution of rows over threads is left to the caller.

use pulp::{Arch, Simd, WithSimd};

/// Partial sums of a row that are kept side by side.
const LANES: usize = 16;

/// Defines a function on values in place: one loop, compiled for the processor's own instructions.
macro_rules! elementwise {
    ($(#[$doc:meta])* $name:ident, $function:ident) => {
        $(#[$doc])*
        pub(super) fn $name(values: &mut [f32]) {
            struct Work<'a>(&'a mut [f32]);
            impl WithSimd for Work<'_> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: Simd>(self, _: S) {
                    for value in self.0 {
                        *value = $function(*value);
                    }
                }
            }
            Arch::new().dispatch(Work(values));
        }
    };
}

elementwise!(
    /// The exact GELU, by the error function.
    gelu_erf,
    gelu_erf_of
);
elementwise!(
    /// The GELU by tanh.
    gelu_tanh,
    gelu_tanh_of
);
elementwise!(
    /// `x · sigmoid(1.702 x)`.
    quick_gelu,
    quick_gelu_of
);
elementwise!(
    /// `max(0, x)`.
    relu,
    relu_of
);
elementwise!(
    /// `x · sigmoid(x)`.
    silu,
    silu_of
);
elementwise!(
    /// The logistic function.
    sigmoid,
    sigmoid_of
);
elementwise!(
    /// The hyperbolic tangent.
    tanh,
    tanh_of
);

#[inline(always)]
fn gelu_erf_of(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh_of(x: f32) -> f32 {
    // sqrt(2 / pi)
    0.5 * x * (1.0 + tanh_of(0.797_884_6 * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
fn quick_gelu_of(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

#[inline(always)]
fn relu_of(x: f32) -> f32 {
    x.max(0.0)
}

#[inline(always)]
fn silu_of(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn sigmoid_of(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh_of(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Error function to about 1e-7, as a ratio of two polynomials; beyond 4 it is 1 in 32 bits.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-3.832_507, 3.832_507);
    let y = x * x;
    let mut top = 0.000_229_050_66_f32;
    for factor in [0.003_408_291, 0.050_955_695, 0.185_208_33, std::f32::consts::FRAC_2_SQRT_PI] {
        top = top * y + factor;
    }
    let mut bottom = -1.179_160_3e-7_f32;
    for factor in [0.000_023_547_966, 0.001_017_962_6, 0.014_070_47, 0.110_985_05, 0.497_469_26, 1.0] {
        bottom = bottom * y + factor;
    }
    x * top / bottom
}

/// Exponential to about 2e-7 of its value, between the smallest and largest normal number.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding and taking it away again rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the remainder keeps its last digits.
    let rest = (x - whole * 0.693_359_4) - whole * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4_f32;
    for factor in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + factor;
    }
    // The whole number stands in the lowest bits; a conversion would keep compilers from using whole registers.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (sum * rest * rest + rest + 1.0) * power
}

#[inline(always)]
pub(super) fn sum_of(row: &[f32], value: impl Fn(f32) -> f32) -> f32 {
    let (pieces, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for piece in pieces {
        for (lane, x) in lanes.iter_mut().zip(piece) {
            *lane += value(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| value(*x)).sum::<f32>()
}

#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if x > y { x } else { y };
    let (pieces, rest) = row.as_chunks::<{ 2 * LANES }>();
    let mut lanes = [f32::NEG_INFINITY; 2 * LANES];
    for piece in pieces {
        for (lane, x) in lanes.iter_mut().zip(piece) {
            *lane = larger(*x, *lane);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Softmax over numbers that come in pieces (Milakov and Gimelshein, 2018, arXiv 1805.02867): the largest
/// number so far, and the sum of the exponentials.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    max: f32,
    sum: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Softmax {
    /// The softmax over one number so far.
    pub(super) fn of(number: f32) -> Self {
        Self { max: number, sum: 1.0 }
    }

    /// Replaces a piece by its exponentials, relative to the largest number so far. Gives the factor that
    /// earlier pieces have to be multiplied with.
    pub(super) fn take(&mut self, piece: &mut [f32]) -> f32 {
        struct Work<'a>(&'a mut [f32], Softmax);
        impl WithSimd for Work<'_> {
            type Output = (Softmax, f32);
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> (Softmax, f32) {
                let Self(piece, before) = self;
                let max = max_of(piece).max(before.max);
                for x in &mut *piece {
                    *x = exp(*x - max);
                }
                let factor = if before.sum == 0.0 { 1.0 } else { exp(before.max - max) };
                (Softmax { max, sum: before.sum * factor + sum_of(piece, |x| x) }, factor)
            }
        }
        if piece.is_empty() {
            return 1.0;
        }
        let (after, factor) = Arch::new().dispatch(Work(piece, *self));
        *self = after;
        factor
    }

    /// Factor that normalizes the exponentials to a sum of 1; 0 where there are none.
    pub(super) fn factor(self) -> f32 {
        if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum }
    }
}

/// Parameters of a layer norm.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) epsilon: f32,
}

/// Replaces each of `rows` by the layer norm of its sum with the row of `others`.
pub(super) fn add_norm(rows: &mut [f32], others: &[f32], norm: Norm<'_>) {
    struct Work<'a>(&'a mut [f32], &'a [f32], Norm<'a>);
    impl WithSimd for Work<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(rows, others, norm) = self;
            let length = norm.weight.len();
            for (row, other) in rows.chunks_exact_mut(length).zip(others.chunks_exact(length)) {
                for (x, y) in row.iter_mut().zip(other) {
                    *x += *y;
                }
                norm_of(row, norm);
            }
        }
    }
    Arch::new().dispatch(Work(rows, others, norm));
}

/// Replaces each row by its layer norm.
pub(super) fn norm(rows: &mut [f32], norm: Norm<'_>) {
    struct Work<'a>(&'a mut [f32], Norm<'a>);
    impl WithSimd for Work<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(rows, norm) = self;
            for row in rows.chunks_exact_mut(norm.weight.len()) {
                norm_of(row, norm);
            }
        }
    }
    Arch::new().dispatch(Work(rows, norm));
}

#[inline(always)]
fn norm_of(row: &mut [f32], Norm { weight, bias, epsilon }: Norm<'_>) {
    let length = row.len() as f32;
    let mean = sum_of(row, |x| x) / length;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / length;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * *weight + *bias;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn largest_difference(ours: &[f32], theirs: &Tensor) -> f32 {
        let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn range() -> (Vec<f32>, Tensor) {
        let values: Vec<f32> = (-3000..3000).map(|step| step as f32 / 250.0).collect();
        let tensor = Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
        (values, tensor)
    }

    #[test]
    fn activations_agree_with_candles() {
        type Case = (fn(&mut [f32]), fn(&Tensor) -> candle_core::Result<Tensor>);
        let quick = |x: &Tensor| x * candle_nn::ops::sigmoid(&(x * 1.702)?)?;
        let cases: [Case; 6] = [
            (gelu_erf, Tensor::gelu_erf),
            (gelu_tanh, Tensor::gelu),
            (quick_gelu, quick),
            (relu, Tensor::relu),
            (silu, Tensor::silu),
            (tanh, Tensor::tanh),
        ];
        for (index, (ours, theirs)) in cases.into_iter().enumerate() {
            let (mut values, tensor) = range();
            ours(&mut values);
            let difference = largest_difference(&values, &theirs(&tensor).unwrap());
            assert!(difference < 2e-6, "activation {index}: {difference}");
        }
    }

    #[test]
    fn softmax_and_norm_agree_with_candles() {
        let (values, tensor) = range();
        let rows = tensor.reshape((60, 100)).unwrap();
        let mut ours = values.clone();
        for row in ours.chunks_exact_mut(100) {
            let mut softmax = Softmax::default();
            let (first, second) = row.split_at_mut(37);
            softmax.take(first);
            let factor = softmax.take(second);
            first.iter_mut().for_each(|x| *x *= factor);
            row.iter_mut().for_each(|x| *x *= softmax.factor());
        }
        let theirs = candle_nn::ops::softmax_last_dim(&rows).unwrap();
        assert!(largest_difference(&ours, &theirs) < 1e-6);

        let (weight, bias) = (vec![1.5; 100], vec![0.25; 100]);
        let mut ours = values.clone();
        add_norm(&mut ours, &values, Norm { weight: &weight, bias: &bias, epsilon: 1e-12 });
        let weight = Tensor::new(weight.as_slice(), &Device::Cpu).unwrap();
        let bias = Tensor::new(bias.as_slice(), &Device::Cpu).unwrap();
        // The slow one: candle's fast one loses digits where a row's mean is far above its deviation, as here.
        let theirs = candle_nn::ops::layer_norm_slow(&(&rows * 2.0).unwrap(), &weight, &bias, 1e-12).unwrap();
        let difference = largest_difference(&ours, &theirs);
        assert!(difference < 2e-5, "{difference}");

        let (weight, bias) = (vec![1.5; 100], vec![0.25; 100]);
        let (mut alone, mut of_sum) = (values.clone(), values.clone());
        norm(&mut alone, Norm { weight: &weight, bias: &bias, epsilon: 1e-5 });
        add_norm(&mut of_sum, &vec![0.0; 6000], Norm { weight: &weight, bias: &bias, epsilon: 1e-5 });
        assert_eq!(alone, of_sum);
    }
}
