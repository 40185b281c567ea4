//! Transformer towers that several capabilities share: images to rows of patch vectors (CLIP, SigLIP, DINOv2) and
//! texts to rows of token vectors (CLIP, SigLIP). All are the same stack of layers that norm their input first; what
//! differs is what goes in and which settings and tensor names a family has. The rows of all images or texts of a pass
//! lie one after another without padding. What is made of them is left to the capabilities: image embedding pools
//! them, vision feeds the hidden states of some layer to a language model, text to image those of a text.

mod positions;
mod stack;
mod settings;
mod text;
mod vision;
pub(crate) mod clip;
pub(crate) mod dinov2;
pub(crate) mod siglip;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{LayerNorm, Linear};
use crate::weights::WeightReader;
pub(crate) use positions::{Positions, Resampling};
pub(crate) use settings::{MAX_SIZE, TextSettings, VisionSettings, activation, check_stack, with_defaults};
pub(crate) use stack::{Layer, Middle, Stack, StackShape};
pub(crate) use text::TextTower;
pub(crate) use vision::{Patches, VisionTower};

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    With,
    Without,
}

/// Loads `{name}.weight`, `(outside, inside)`, and with a bias `{name}.bias`.
pub(crate) fn linear(
    reader: &WeightReader<'_>,
    name: &str,
    outside: usize,
    inside: usize,
    bias: Bias,
) -> Result<Linear> {
    let weight = reader.tensor(&format!("{name}.weight"), &[outside, inside])?;
    let bias = match bias {
        Bias::With => Some(reader.tensor(&format!("{name}.bias"), &[outside])?),
        Bias::Without => None,
    };
    Linear::new(&weight, bias)
}

/// Loads a query's, key's and value's layer, `(width, width)` each, as one layer that gives all three.
pub(crate) fn mixed(reader: &WeightReader<'_>, names: [&str; 3], width: usize, bias: Bias) -> Result<Linear> {
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for name in names {
        reader.append(&format!("{name}.weight"), &[width, width], &mut weights)?;
        if bias == Bias::With {
            reader.append(&format!("{name}.bias"), &[width], &mut biases)?;
        }
    }
    let weight = reader.place(weights, &[3 * width, width])?;
    let bias = match bias {
        Bias::With => Some(reader.place(biases, &[3 * width])?),
        Bias::Without => None,
    };
    Linear::new(&weight, bias)
}

/// Loads `{name}.weight` and `{name}.bias`, `(width)` each.
pub(crate) fn norm(reader: &WeightReader<'_>, name: &str, width: usize, epsilon: f64) -> Result<LayerNorm> {
    let weight = reader.tensor(&format!("{name}.weight"), &[width])?;
    let bias = reader.tensor(&format!("{name}.bias"), &[width])?;
    Ok(LayerNorm { weight, bias, epsilon })
}

/// The rows of `hidden` with these numbers.
pub(crate) fn pick(hidden: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    Ok(hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?)
}

/// Where each sequence of these lengths begins.
pub(crate) fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
}
