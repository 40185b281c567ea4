//! Learned positions of an image's patches, and how the vectors of one grid become those of another.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::with_values;

/// Ways to make positions for another grid than the model's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resampling {
    /// They are not: images have the one size.
    Never,
    /// PyTorch's bicubic `interpolate`: four neighbours, a = -0.75.
    Bicubic,
    /// The same with `antialias`: the kernel widens with the grid's shrinking, a = -0.5.
    BicubicAntialias,
    /// PyTorch's bilinear `interpolate`: two neighbours.
    Bilinear,
    /// PyTorch's bilinear `interpolate` with `antialias`.
    BilinearAntialias,
}

/// How the patches of an image are told apart by their places.
pub(crate) struct Positions(Kind);

enum Kind {
    /// By the vectors of a square grid's places.
    Learned {
        /// `(side · side, width)`, row by row.
        values: Tensor,
        side: usize,
        resampling: Resampling,
    },
    /// By their centres, which the blocks rotate queries and keys by.
    Rotary,
}

/// Along one axis: for each new place the first old one that it draws on, and their weights.
type Taps = Vec<(usize, Vec<f32>)>;

impl Positions {
    /// `values` is `(side · side, width)`.
    pub(crate) fn new(values: Tensor, side: usize, resampling: Resampling) -> Self {
        Self(Kind::Learned { values, side, resampling })
    }

    /// Of blocks with a rotary embedding by line and column.
    pub(crate) fn rotary() -> Self {
        Self(Kind::Rotary)
    }

    /// True for blocks that rotate by the centres of the patches.
    pub(crate) fn is_rotary(&self) -> bool {
        matches!(self.0, Kind::Rotary)
    }

    /// The patches of a grid of `down` rows of `across`, `(down · across, width)`, with the vectors of their places.
    pub(crate) fn add_to(&self, patches: Tensor, down: usize, across: usize) -> Result<Tensor> {
        match &self.0 {
            Kind::Rotary => Ok(patches),
            Kind::Learned { values, side, .. } if (down, across) == (*side, *side) => Ok((patches + values)?),
            Kind::Learned { values, side, resampling } => {
                Ok((patches + resample(values, (*side, *side), (down, across), *resampling)?)?)
            }
        }
    }
}

/// Centres of the patches of a grid, row by row, each by line and column in turns of the slowest rotation: from -2π at
/// one edge of the image to 2π at the other.
pub(crate) fn centres(down: usize, across: usize) -> impl Iterator<Item = [f32; 2]> {
    // In 32 bits, as the reference has it.
    let along = |place: usize, count: usize| {
        (2.0 * std::f64::consts::PI) as f32 * (2.0 * ((place as f32 + 0.5) / count as f32) - 1.0)
    };
    (0..down).flat_map(move |line| (0..across).map(move |column| [along(line, down), along(column, across)]))
}

/// The vectors of a grid of `old` lines and columns, `(lines · columns, width)`, as those of a grid of `new`.
///
/// # Errors
/// [`Error::InvalidInput`] where the grid cannot be another.
pub(crate) fn resample(
    values: &Tensor,
    old: (usize, usize),
    new: (usize, usize),
    resampling: Resampling,
) -> Result<Tensor> {
    let taps = match resampling {
        Resampling::Never => {
            let ((old_down, old_across), (down, across)) = (old, new);
            let reason =
                format!("the model takes images of {old_across}x{old_down} patches, not {across}x{down}");
            return Err(Error::InvalidInput(reason));
        }
        Resampling::Bicubic => bicubic,
        Resampling::BicubicAntialias => bicubic_antialias,
        Resampling::Bilinear => bilinear,
        Resampling::BilinearAntialias => bilinear_antialias,
    };
    let (rows, columns) = (taps(old.0, new.0), taps(old.1, new.1));
    let width = values.dim(1)?;
    let host = values.to_device(&candle_core::Device::Cpu)?;
    let resampled = with_values(&host, |values| {
        let across = resample_axis(values, old.0, width, &columns);
        resample_axis(&across, 1, columns.len() * width, &rows)
    })?;
    Ok(Tensor::from_vec(resampled, (new.0 * new.1, width), values.device())?)
}

/// Resamples the middle axis of `(lines, old, width)`, where `lines` is what is left over and `old · width` a
/// line.
fn resample_axis(values: &[f32], lines: usize, width: usize, taps: &Taps) -> Vec<f32> {
    let line = values.len() / lines.max(1);
    let mut out = Vec::with_capacity(lines * taps.len() * width);
    for values in values.chunks_exact(line.max(1)) {
        for (first, weights) in taps {
            let begin = out.len();
            out.resize(begin + width, 0.0);
            for (weight, value) in weights.iter().zip(values[first * width..].chunks_exact(width)) {
                out[begin..].iter_mut().zip(value).for_each(|(sum, x)| *sum += weight * x);
            }
        }
    }
    out
}

/// Beyond the edge the last value goes on.
fn bilinear(old: usize, new: usize) -> Taps {
    let scale = old as f32 / new as f32;
    let of = |place: usize| {
        let at = ((place as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (at as usize).min(old.saturating_sub(1));
        let share = at - first as f32;
        match first + 1 < old {
            true => (first, vec![1.0 - share, share]),
            false => (first, vec![1.0]),
        }
    };
    (0..new).map(of).collect()
}

/// The cubic convolution kernel (Keys 1981).
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    match x {
        ..1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        1.0..2.0 => a * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    }
}

/// Beyond the edge the last value goes on.
fn bicubic(old: usize, new: usize) -> Taps {
    let scale = old as f64 / new as f64;
    let last = old as i64 - 1;
    let of = |place: usize| {
        let centre = (place as f64 + 0.5) * scale - 0.5;
        let nearest = centre.floor() as i64;
        let first = (nearest - 1).clamp(0, last);
        let end = (nearest + 2).clamp(0, last);
        let mut weights = vec![0.0; (end - first + 1) as usize];
        for neighbour in nearest - 1..=nearest + 2 {
            let weight = cubic(centre - neighbour as f64, -0.75);
            weights[(neighbour.clamp(0, last) - first) as usize] += weight as f32;
        }
        (first as usize, weights)
    };
    (0..new).map(of).collect()
}

fn bicubic_antialias(old: usize, new: usize) -> Taps {
    antialiased(old, new, 2.0, |x| cubic(x, -0.5))
}

fn bilinear_antialias(old: usize, new: usize) -> Taps {
    antialiased(old, new, 1.0, |x| (1.0 - x.abs()).max(0.0))
}

/// Weights of a kernel of this radius without what lies beyond the edge; they add up to 1 without it.
fn antialiased(old: usize, new: usize, radius: f64, kernel: impl Fn(f64) -> f64) -> Taps {
    let scale = old as f64 / new as f64;
    let stretch = scale.max(1.0);
    let support = radius * stretch;
    let of = |place: usize| {
        let centre = (place as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(old);
        let weights: Vec<f64> =
            (first..end).map(|place| kernel((place as f64 + 0.5 - centre) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|weight| (weight / sum) as f32).collect())
    };
    (0..new).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;
    use candle_core::Device;

    #[test]
    fn weights_add_up_to_one_and_the_same_grid_stays_as_it_is() {
        for (old, new) in [(37, 16), (16, 37), (4, 5), (1, 3), (3, 1)] {
            let kernels = [bicubic_antialias(old, new), bilinear_antialias(old, new)];
            for taps in [bicubic(old, new), bilinear(old, new)].into_iter().chain(kernels) {
                for (first, weights) in taps {
                    assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    assert!(first + weights.len() <= old);
                }
            }
        }
        let values = random(0.0, 1.0, (16, 8));
        let all = [
            Resampling::Never,
            Resampling::Bicubic,
            Resampling::BicubicAntialias,
            Resampling::Bilinear,
            Resampling::BilinearAntialias,
        ];
        for resampling in all {
            let positions = Positions::new(values.clone(), 4, resampling);
            let same: Vec<Vec<f32>> =
                positions.add_to(values.zeros_like().unwrap(), 4, 4).unwrap().to_vec2().unwrap();
            assert_eq!(same, values.to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn a_constant_grid_stays_constant_and_another_grid_may_be_refused() {
        let values = Tensor::ones((9, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let none = |count| Tensor::zeros((count, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let positions = Positions::new(values.clone(), 3, Resampling::Bicubic);
        let resampled = positions.add_to(none(10), 5, 2).unwrap();
        assert_eq!(resampled.dims(), [10, 2]);
        assert!(
            resampled.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| (x - 1.0).abs() < 1e-5)
        );
        let refused = Positions::new(values, 3, Resampling::Never).add_to(none(6), 3, 2);
        assert!(matches!(refused, Err(Error::InvalidInput(_))));
    }

    #[test]
    fn centres_are_as_far_from_one_edge_as_from_the_other() {
        let turn = (2.0 * std::f64::consts::PI) as f32;
        let all: Vec<[f32; 2]> = centres(2, 3).collect();
        let third = turn * (2.0 * (0.5f32 / 3.0) - 1.0);
        assert_eq!(all[0], [-turn / 2.0, third]);
        assert_eq!(all[4], [turn / 2.0, 0.0]);
        assert!((all[5][1] + third).abs() < 1e-6 && all.len() == 6);
        assert_eq!(centres(1, 1).collect::<Vec<_>>(), [[0.0, 0.0]]);
    }
}
