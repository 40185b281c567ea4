//! Multimodal diffusion transformer (MMDiT; Esser et al., arXiv 2403.03206), as far as Stable Diffusion 3 and FLUX share it:
//! image and text are two streams of rows with weights of their own that meet in one joint attention, and every layer is
//! modulated by an embedding of timestep and text. It has a block of its own, because no other transformer here has two
//! streams or modulation. One image goes through at a time, so streams are `(rows, width)`.

mod modulation;

use candle_core::Tensor;

use super::layers::{FeedForward, ScopedReader};
use crate::error::Result;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{Activation, Linear, rotate_interleaved, scaled_dot_product_attention};
pub(super) use modulation::{Guided, Last, Modulation, TimeTextEmbedding, gated, modulated};

/// Of all norms of these models.
const EPSILON: f64 = 1e-6;

/// Attention heads of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) size: usize,
}

impl Heads {
    pub(super) fn width(self) -> usize {
        self.count * self.size
    }
}

/// How queries and keys are normed before they meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadNorm {
    None,
    Rms,
}

/// What positions do to queries and keys: the cosines and sines of the pairs of each row, `(rows, size / 2)`, text
/// first.
pub(super) struct RopeTable {
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

/// The names of a stream's tensors in an attention: query, key, value, their norms, and what comes out.
struct Names {
    layers: [&'static str; 3],
    norms: [&'static str; 2],
    out: &'static str,
}

const IMAGE: Names = Names { layers: ["to_q", "to_k", "to_v"], norms: ["norm_q", "norm_k"], out: "to_out.0" };
const TEXT: Names = Names {
    layers: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
    out: "to_add_out",
};

/// The layers that make a stream's queries, keys and values.
pub(super) struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    norms: Option<[RmsNorm; 2]>,
    heads: Heads,
}

impl Projections {
    fn load(reader: &ScopedReader<'_>, names: &Names, heads: Heads, norm: HeadNorm) -> Result<Self> {
        let width = heads.width();
        let [query, key, value] = names.layers.map(|name| reader.at(name).linear(width, width));
        let [of_query, of_key] = names.norms;
        let load = |name| reader.at(name).rms_norm(heads.size, EPSILON);
        let norms = match norm {
            HeadNorm::Rms => Some([load(of_query)?, load(of_key)?]),
            HeadNorm::None => None,
        };
        Ok(Self { query: query?, key: key?, value: value?, norms, heads })
    }

    /// Those of a stream that is alone.
    pub(super) fn load_alone(reader: &ScopedReader<'_>, heads: Heads) -> Result<Self> {
        Self::load(reader, &IMAGE, heads, HeadNorm::Rms)
    }

    /// Query, key and value of each row.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<[Tensor; 3]> {
        let of = |layer: &Linear| layer.forward(rows, Activation::Identity);
        let (query, key, value) = (of(&self.query)?, of(&self.key)?, of(&self.value)?);
        Ok(match &self.norms {
            Some([of_query, of_key]) => [of_query.forward(&query)?, of_key.forward(&key)?, value],
            None => [query, key, value],
        })
    }

    /// Attention of all rows to all rows, `(rows, width)`.
    pub(super) fn attend(&self, mixed: [Tensor; 3], rope: Option<&RopeTable>) -> Result<Tensor> {
        let [mut query, mut key, value] = mixed;
        if let Some(RopeTable { cosines, sines }) = rope {
            (query, key) =
                (rotate_interleaved(&query, cosines, sines)?, rotate_interleaved(&key, cosines, sines)?);
        }
        let [query, key, value] = [query, key, value].map(|rows| rows.unsqueeze(0));
        let scale = 1.0 / (self.heads.size as f64).sqrt();
        Ok(scaled_dot_product_attention(&query?, &key?, &value?, self.heads.count, scale, None)?
            .squeeze(0)?)
    }
}

/// One stream's half of a block.
struct Side {
    modulation: Modulation,
    projections: Projections,
    /// Nothing where nobody needs the stream behind this block.
    rest: Option<Rest>,
    /// Attention to its own rows alone beside the joint one, as the medium Stable Diffusion 3.5 has it.
    second: Option<(Projections, Linear)>,
}

/// Projection behind the attention and the feed-forward layer.
struct Rest {
    out: Linear,
    feed_forward: FeedForward,
}

/// How a block differs from the plain one.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    pub(super) heads: Heads,
    pub(super) norm: HeadNorm,
    pub(super) attentions: Attentions,
    pub(super) end: End,
}

/// Which attentions the image's stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attentions {
    Joint,
    /// The joint one and one of its own.
    Dual,
}

/// What becomes of the text's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Both,
    /// The last block; nobody needs the text behind it.
    ImageOnly,
}

/// A block of both streams.
pub(super) struct JointBlock {
    image: Side,
    text: Side,
}

impl Rest {
    fn load(reader: &ScopedReader<'_>, out: &str, feed_forward: &str, width: usize) -> Result<Self> {
        let (out, feed_forward) = (reader.at("attn").at(out), reader.at(feed_forward));
        Ok(Self {
            out: out.linear(width, width)?,
            feed_forward: FeedForward {
                gate: None,
                up: feed_forward.at("net.0.proj").linear(width, 4 * width)?,
                activation: Activation::GeluTanh,
                down: feed_forward.at("net.2").linear(4 * width, width)?,
            },
        })
    }
}

impl JointBlock {
    pub(super) fn load(reader: &ScopedReader<'_>, shape: BlockShape) -> Result<Self> {
        let BlockShape { heads, norm, attentions, end } = shape;
        let (width, attention) = (heads.width(), reader.at("attn"));
        let second = || -> Result<(Projections, Linear)> {
            let reader = reader.at("attn2");
            Ok((Projections::load(&reader, &IMAGE, heads, norm)?, reader.at(IMAGE.out).linear(width, width)?))
        };
        let image = Side {
            modulation: Modulation::load(
                &reader.at("norm1"),
                width,
                if attentions == Attentions::Dual { 9 } else { 6 },
            )?,
            projections: Projections::load(&attention, &IMAGE, heads, norm)?,
            rest: Some(Rest::load(reader, IMAGE.out, "ff", width)?),
            second: (attentions == Attentions::Dual).then(second).transpose()?,
        };
        let rest = || Rest::load(reader, TEXT.out, "ff_context", width);
        let text = Side {
            modulation: Modulation::load(
                &reader.at("norm1_context"),
                width,
                if end == End::Both { 6 } else { 2 },
            )?,
            projections: Projections::load(&attention, &TEXT, heads, norm)?,
            rest: (end == End::Both).then(rest).transpose()?,
            second: None,
        };
        Ok(Self { image, text })
    }

    /// Image and text, `(rows, width)` each, to the same.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        modulation: &Tensor,
        rope: Option<&RopeTable>,
    ) -> Result<(Tensor, Tensor)> {
        let of_image = self.image.steer(image, modulation)?;
        let of_text = self.text.steer(text, modulation)?;
        let [query, key, value] = self.image.projections.forward(&of_image.normal)?;
        let [text_query, text_key, text_value] = self.text.projections.forward(&of_text.normal)?;
        let join = |text: Tensor, image: Tensor| Tensor::cat(&[text, image], 0);
        let mixed = [join(text_query, query)?, join(text_key, key)?, join(text_value, value)?];
        let attended = self.image.projections.attend(mixed, rope)?;
        let count = text.dim(0)?;
        let for_image = attended.narrow(0, count, image.dim(0)?)?.contiguous()?;
        let for_text = attended.narrow(0, 0, count)?.contiguous()?;
        drop(attended);
        let image = self.image.finish(image, &for_image, of_image)?;
        Ok((image, self.text.finish(text, &for_text, of_text)?))
    }
}

/// A stream's rows, ready for attention, and what else the modulation vector says.
struct Steered {
    normal: Tensor,
    /// Gate of the attention; shift, scale and gate of the middle layers.
    rest: Option<[Tensor; 4]>,
    /// What goes into the second attention, and its gate.
    second: Option<[Tensor; 2]>,
}

impl Side {
    fn steer(&self, rows: &Tensor, modulation: &Tensor) -> Result<Steered> {
        if self.rest.is_none() {
            let [scale, shift] = self.modulation.parts(modulation)?;
            return Ok(Steered { normal: modulated(rows, &shift, &scale)?, rest: None, second: None });
        }
        if self.second.is_none() {
            let [shift, scale, gate, then @ ..]: [Tensor; 6] = self.modulation.parts(modulation)?;
            let [to_shift, to_scale, to_gate] = then;
            let rest = Some([gate, to_shift, to_scale, to_gate]);
            return Ok(Steered { normal: modulated(rows, &shift, &scale)?, rest, second: None });
        }
        let [shift, scale, gate, to_shift, to_scale, to_gate, shift2, scale2, gate2] =
            self.modulation.parts(modulation)?;
        Ok(Steered {
            normal: modulated(rows, &shift, &scale)?,
            rest: Some([gate, to_shift, to_scale, to_gate]),
            second: Some([modulated(rows, &shift2, &scale2)?, gate2]),
        })
    }

    fn finish(&self, rows: &Tensor, attended: &Tensor, steered: Steered) -> Result<Tensor> {
        let (Some(rest), Some([gate, shift, scale, last_gate])) = (&self.rest, steered.rest) else {
            return Ok(rows.clone());
        };
        let mut rows = gated(rows, &gate, &rest.out.forward(attended, Activation::Identity)?)?;
        if let (Some((projections, out)), Some([normal, gate])) = (&self.second, steered.second) {
            let attended = projections.attend(projections.forward(&normal)?, None)?;
            rows = gated(&rows, &gate, &out.forward(&attended, Activation::Identity)?)?;
        }
        let update = rest.feed_forward.forward(&modulated(&rows, &shift, &scale)?)?;
        gated(&rows, &last_gate, &update)
    }
}
