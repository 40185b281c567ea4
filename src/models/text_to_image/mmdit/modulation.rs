//! Modulation of a transformer's layers (adaptive layer norm; Peebles and Xie, arXiv 2212.09748): the
//! embedding of timestep, guidance and text becomes shifts, scales and gates of every layer.

use candle_core::{Device, Tensor};

use super::super::layers::{ScopedReader, SinusoidalEmbedding, TimestepEmbedding};
use super::EPSILON;
use crate::error::{Error, Result};
use crate::kernels::{Activation, LayerNorm, Linear};

/// Width of the sinusoidal embeddings.
const SINUSOIDAL_WIDTH: usize = 256;

/// Layer that makes the shifts, scales and gates of one layer from the embedding.
pub(in super::super) struct Modulation(Linear);

impl Modulation {
    /// Loads a layer that gives so many vectors of the stream's width.
    pub(in super::super) fn load(reader: &ScopedReader<'_>, width: usize, parts: usize) -> Result<Self> {
        Ok(Self(reader.at("linear").linear(width, parts * width)?))
    }

    /// Vectors of `(width)` each, from the embedding after its activation, `(1, width)`.
    pub(in super::super) fn parts<const N: usize>(&self, embedding: &Tensor) -> Result<[Tensor; N]> {
        let parts = self.0.forward(embedding, Activation::Identity)?.squeeze(0)?.chunk(N, 0)?;
        parts.try_into().map_err(|_| Error::compute("a modulation has other parts"))
    }
}

/// Adaptive layer norm: the norm of each row without weights of its own, then `(1 + scale) · row + shift`.
pub(in super::super) fn modulated_norm(rows: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    LayerNorm { weight: (scale + 1.0)?, bias: shift.contiguous()?, epsilon: EPSILON }.of(rows)
}

/// Gated residual connection, `rows + gate · update`.
pub(in super::super) fn gated_residual(rows: &Tensor, gate: &Tensor, update: &Tensor) -> Result<Tensor> {
    Ok((rows + update.broadcast_mul(gate)?)?)
}

/// Embedding of timestep, guidance and pooled prompt, which modulates all layers.
pub(in super::super) struct TimeTextEmbedding {
    timestep: TimestepEmbedding,
    guidance: Option<TimestepEmbedding>,
    text: TimestepEmbedding,
}

impl TimeTextEmbedding {
    /// `pooled` is the width of a pooled prompt embedding.
    pub(in super::super) fn load(
        reader: &ScopedReader<'_>,
        pooled: usize,
        width: usize,
        guidance: GuidanceEmbedding,
    ) -> Result<Self> {
        let reader = reader.at("time_text_embed");
        let embedding = |name| TimestepEmbedding::load(&reader.at(name), SINUSOIDAL_WIDTH, width);
        let guidance = (guidance == GuidanceEmbedding::Present).then(|| embedding("guidance_embedder"));
        Ok(Self {
            timestep: embedding("timestep_embedder")?,
            guidance: guidance.transpose()?,
            text: TimestepEmbedding::load(&reader.at("text_embedder"), pooled, width)?,
        })
    }

    /// Embedding `(1, width)` after its activation, from a timestep of 0 to 1000, the scale of the guidance
    /// and a pooled prompt embedding `(1, pooled)`.
    pub(in super::super) fn of(&self, timestep: f64, guidance: f64, pooled: &Tensor) -> Result<Tensor> {
        let sinusoidal =
            SinusoidalEmbedding { width: SINUSOIDAL_WIDTH, flip_sin_to_cos: true, freq_shift: 0.0 };
        let row = |number: f32| -> Result<Tensor> {
            let row = Tensor::from_vec(sinusoidal.of(number), (1, SINUSOIDAL_WIDTH), &Device::Cpu)?;
            Ok(row.to_device(pooled.device())?)
        };
        let mut sum = self.timestep.forward(&row(timestep as f32)?)?;
        if let Some(embedding) = &self.guidance {
            sum = (sum + embedding.forward(&row(guidance as f32 * 1000.0)?)?)?;
        }
        Ok((sum + self.text.forward(pooled)?)?.silu()?)
    }
}

/// Guidance as an input of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum GuidanceEmbedding {
    /// The model takes the scale of the guidance and needs one prediction a step.
    Present,
    /// The model does not know of guidance.
    Absent,
}

/// Last norm and projection to patches.
pub(in super::super) struct OutputLayer {
    modulation: Modulation,
    proj_out: Linear,
}

impl OutputLayer {
    pub(in super::super) fn load(reader: &ScopedReader<'_>, width: usize, out_dim: usize) -> Result<Self> {
        let modulation = Modulation::load(&reader.at("norm_out"), width, 2)?;
        Ok(Self { modulation, proj_out: reader.at("proj_out").linear(width, out_dim)? })
    }

    /// `(rows, width)` to `(rows, out_dim)`, with the embedding of timestep and text.
    pub(in super::super) fn forward(&self, rows: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let [scale, shift] = self.modulation.parts(embedding)?;
        self.proj_out.forward(&modulated_norm(rows, &shift, &scale)?, Activation::Identity)
    }
}
