//! Noise of one image, from its seed alone, whatever else is in the batch, or given by the caller.

use candle_core::{Device, Tensor};
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution as _, StandardNormal};

use crate::error::{Error, Result};

/// Source of normally distributed numbers.
pub(super) enum Noise {
    /// From a seed.
    Seeded(Box<ChaCha12Rng>),
    /// Given numbers, and how many of them were used.
    Given(Vec<f32>, usize),
}

impl Noise {
    /// Creates the source of a seed; without one it is different each time.
    pub(super) fn seeded(seed: Option<u64>) -> Self {
        Self::Seeded(Box::new(ChaCha12Rng::seed_from_u64(seed.unwrap_or_else(any_seed))))
    }

    /// Creates a source of given numbers.
    pub(super) fn given(numbers: Vec<f32>) -> Self {
        Self::Given(numbers, 0)
    }

    /// Takes the next numbers as a tensor of this shape. They are made on the processor, so that a seed gives the
    /// same noise on every device.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] where given noise does not suffice.
    pub(super) fn next(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let count = shape.iter().product();
        let numbers = match self {
            Self::Seeded(generator) => {
                StandardNormal.sample_iter(generator).take(count).collect::<Vec<f32>>()
            }
            Self::Given(numbers, used) => {
                let next = numbers.get(*used..*used + count).ok_or_else(|| {
                    let (left, used) = (numbers.len() - *used, *used);
                    Error::InvalidInput(format!(
                        "{count} numbers of noise are needed after the first {used}; {left} are there"
                    ))
                })?;
                *used += count;
                next.to_vec()
            }
        };
        Ok(Tensor::from_vec(numbers, shape, device)?)
    }
}

/// The standard library seeds its hash maps from the system; that serves here too.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(noise: &mut Noise) -> Vec<f32> {
        noise.next(&[2, 2], &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_noise_again_and_no_seed_gives_another() {
        let (mut one, mut two) = (Noise::seeded(Some(7)), Noise::seeded(Some(7)));
        let first = numbers(&mut one);
        assert_eq!(first, numbers(&mut two));
        assert_ne!(first, numbers(&mut two));
        assert_ne!(numbers(&mut Noise::seeded(None)), numbers(&mut Noise::seeded(None)));
    }

    #[test]
    fn given_noise_is_used_up_in_order() {
        let mut noise = Noise::given(vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(numbers(&mut noise), [1.0, 2.0, 3.0, 4.0]);
        let error = noise.next(&[2, 2], &Device::Cpu).unwrap_err().to_string();
        assert_eq!(error, "4 numbers of noise are needed after the first 4; 1 are there");
    }
}
