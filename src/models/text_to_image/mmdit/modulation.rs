//! The vector that steers every layer, made of the time, the guidance and the text, and what layers do with it.

use candle_core::{Device, Tensor};

use super::super::layers::{ScopedReader, SinusoidalEmbedding, TimestepEmbedding};
use super::EPSILON;
use crate::error::{Error, Result};
use crate::kernels::{Activation, LayerNorm, Linear};

/// Width of the sines and cosines of a time.
const SINUSOID: usize = 256;

/// What a layer is steered with: so many vectors of the stream's width, made of the vector that steers all.
pub(in super::super) struct Modulation(Linear);

impl Modulation {
    pub(in super::super) fn load(reader: &ScopedReader<'_>, width: usize, parts: usize) -> Result<Self> {
        Ok(Self(reader.at("linear").linear(width, parts * width)?))
    }

    /// The vectors, `(width)` each. `modulation` is `(1, width)`, activated already.
    pub(in super::super) fn parts<const N: usize>(&self, modulation: &Tensor) -> Result<[Tensor; N]> {
        let mixed = self.0.forward(modulation, Activation::Identity)?.squeeze(0)?;
        let parts = mixed.chunk(N, 0)?;
        parts.try_into().map_err(|_| Error::compute("a modulation has other parts"))
    }
}

/// The norm of each row without weights of its own, then `(1 + scale) · row + shift`.
pub(in super::super) fn modulated(rows: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    LayerNorm { weight: (scale + 1.0)?, bias: shift.contiguous()?, epsilon: EPSILON }.of(rows)
}

/// `rows + gate · update`.
pub(in super::super) fn gated(rows: &Tensor, gate: &Tensor, update: &Tensor) -> Result<Tensor> {
    Ok((rows + update.broadcast_mul(gate)?)?)
}

/// Makes the vector that steers all layers.
pub(in super::super) struct TimeTextEmbedding {
    time: TimestepEmbedding,
    guidance: Option<TimestepEmbedding>,
    text: TimestepEmbedding,
}

impl TimeTextEmbedding {
    /// `pooled` is the width of a text's vector; whether there is a guidance the weights know.
    pub(in super::super) fn load(
        reader: &ScopedReader<'_>,
        pooled: usize,
        width: usize,
        guided: Guided,
    ) -> Result<Self> {
        let reader = reader.at("time_text_embed");
        let embedding = |name| TimestepEmbedding::load(&reader.at(name), SINUSOID, width);
        Ok(Self {
            time: embedding("timestep_embedder")?,
            guidance: (guided == Guided::ByModel).then(|| embedding("guidance_embedder")).transpose()?,
            text: TimestepEmbedding::load(&reader.at("text_embedder"), pooled, width)?,
        })
    }

    /// `(1, width)`, activated for the layers, from a time in thousandths, a guidance and a text's vector `(1, pooled)`.
    pub(in super::super) fn of(&self, time: f64, guidance: f64, pooled: &Tensor) -> Result<Tensor> {
        let told = |number: f32| -> Result<Tensor> {
            let sines =
                SinusoidalEmbedding { width: SINUSOID, flip_sin_to_cos: true, freq_shift: 0.0 }.of(number);
            Ok(Tensor::from_vec(sines, (1, SINUSOID), &Device::Cpu)?.to_device(pooled.device())?)
        };
        let mut sum = self.time.forward(&told(time as f32)?)?;
        if let Some(layer) = &self.guidance {
            sum = (sum + layer.forward(&told(guidance as f32 * 1000.0)?)?)?;
        }
        Ok((sum + self.text.forward(pooled)?)?.silu()?)
    }
}

/// Who sees to guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Guided {
    /// The model is told how strong it is.
    ByModel,
    /// The model knows nothing of it.
    Outside,
}

/// The last norm and layer.
pub(in super::super) struct Last {
    modulation: Modulation,
    layer: Linear,
}

impl Last {
    pub(in super::super) fn load(reader: &ScopedReader<'_>, width: usize, outside: usize) -> Result<Self> {
        let modulation = Modulation::load(&reader.at("norm_out"), width, 2)?;
        Ok(Self { modulation, layer: reader.at("proj_out").linear(width, outside)? })
    }

    pub(in super::super) fn forward(&self, rows: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let [scale, shift] = self.modulation.parts(modulation)?;
        self.layer.forward(&modulated(rows, &shift, &scale)?, Activation::Identity)
    }
}
