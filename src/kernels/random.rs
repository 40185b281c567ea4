//! Random tensors for the tests of this crate, the same in each run, so that a failing test fails again.

use std::cell::Cell;

use candle_core::{Device, Shape, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Normal};

thread_local! {
    /// A test has a thread of its own, so its tensors do not depend on the other tests.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Creates the next tensor of the test, of normally distributed numbers.
pub(crate) fn random(mean: f32, deviation: f32, shape: impl Into<Shape>) -> Tensor {
    let generator = ChaCha8Rng::seed_from_u64(SEED.replace(SEED.get() + 1));
    let shape = shape.into();
    let numbers = Normal::new(mean, deviation).unwrap().sample_iter(generator);
    Tensor::from_vec(numbers.take(shape.elem_count()).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}
