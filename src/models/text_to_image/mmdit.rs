//! Multimodal diffusion transformer (MMDiT; Esser et al., arXiv 2403.03206), as far as Stable Diffusion 3 and
//! FLUX share it: image and text are two streams of rows with weights of their own that meet in one joint
//! attention, and every layer is modulated by an embedding of timestep and text. It has a block of its own,
//! because no other transformer here has two streams or modulation. One image goes through at a time, so
//! streams are `(rows, width)`.

mod modulation;

use candle_core::Tensor;

use super::layers::{FeedForward, ScopedReader};
use crate::error::Result;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{Activation, Linear, rotate_interleaved, scaled_dot_product_attention};
pub(super) use modulation::{
    GuidanceEmbedding, Modulation, OutputLayer, TimeTextEmbedding, gated_residual, modulated_norm,
};

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

/// Norm of each head's queries and keys (`qk_norm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    Rms,
}

/// Rotary embedding of neighbouring pairs: cosines and sines of each row, `(rows, size / 2)`, text first.
pub(super) struct InterleavedRope {
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

/// Names of a stream's tensors in an attention.
struct Names {
    projections: [&'static str; 3],
    norms: [&'static str; 2],
    out: &'static str,
}

const IMAGE: Names =
    Names { projections: ["to_q", "to_k", "to_v"], norms: ["norm_q", "norm_k"], out: "to_out.0" };
const TEXT: Names = Names {
    projections: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
    out: "to_add_out",
};

/// Query, key and value projections of a stream.
pub(super) struct QkvProjections {
    query: Linear,
    key: Linear,
    value: Linear,
    norms: Option<[RmsNorm; 2]>,
    heads: Heads,
}

impl QkvProjections {
    fn load(reader: &ScopedReader<'_>, names: &Names, heads: Heads, norm: QkNorm) -> Result<Self> {
        let width = heads.width();
        let [query, key, value] = names.projections.map(|name| reader.at(name).linear(width, width));
        let [query_norm, key_norm] = names.norms;
        let load = |name| reader.at(name).rms_norm(heads.size, EPSILON);
        let norms = match norm {
            QkNorm::Rms => Some([load(query_norm)?, load(key_norm)?]),
            QkNorm::None => None,
        };
        Ok(Self { query: query?, key: key?, value: value?, norms, heads })
    }

    /// Loads the projections of a block that has one stream for text and image.
    pub(super) fn load_single_stream(reader: &ScopedReader<'_>, heads: Heads) -> Result<Self> {
        Self::load(reader, &IMAGE, heads, QkNorm::Rms)
    }

    /// Query, key and value of `(rows, width)`, each of the same shape.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<[Tensor; 3]> {
        let project = |layer: &Linear| layer.forward(rows, Activation::Identity);
        let (query, key, value) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        Ok(match &self.norms {
            Some([query_norm, key_norm]) => [query_norm.forward(&query)?, key_norm.forward(&key)?, value],
            None => [query, key, value],
        })
    }

    /// Attention of all rows to all rows, from query, key and value of `(rows, width)`. Gives the same shape.
    pub(super) fn attention(&self, qkv: [Tensor; 3], rope: Option<&InterleavedRope>) -> Result<Tensor> {
        let [mut query, mut key, value] = qkv;
        if let Some(InterleavedRope { cosines, sines }) = rope {
            query = rotate_interleaved(&query, cosines, sines)?;
            key = rotate_interleaved(&key, cosines, sines)?;
        }
        let (query, key, value) = (query.unsqueeze(0)?, key.unsqueeze(0)?, value.unsqueeze(0)?);
        let scale = 1.0 / (self.heads.size as f64).sqrt();
        let out = scaled_dot_product_attention(&query, &key, &value, self.heads.count, scale, None)?;
        Ok(out.squeeze(0)?)
    }
}

/// One stream's half of a block.
struct Stream {
    modulation: Modulation,
    qkv_proj: QkvProjections,
    /// Layers behind the joint attention; none in a text stream that ends with this block.
    rest: Option<StreamRest>,
    /// Self-attention of the stream alone beside the joint one, as Stable Diffusion 3.5 medium has it.
    self_attention: Option<(QkvProjections, Linear)>,
}

/// Output projection of the joint attention, and the feed-forward layer.
struct StreamRest {
    out_proj: Linear,
    feed_forward: FeedForward,
}

/// Variant of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    pub(super) heads: Heads,
    pub(super) norm: QkNorm,
    pub(super) attentions: Attentions,
    pub(super) text: TextStream,
}

/// Attentions of the image's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attentions {
    Joint,
    /// The joint attention and a self-attention.
    Dual,
}

/// Text stream behind a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextStream {
    GoesOn,
    /// It ends with this block, the last one (`context_pre_only` in diffusers).
    Ends,
}

/// Block of two streams, `JointTransformerBlock` and `FluxTransformerBlock` of diffusers.
pub(super) struct JointBlock {
    image: Stream,
    text: Stream,
}

impl StreamRest {
    fn load(reader: &ScopedReader<'_>, out: &str, feed_forward: &str, width: usize) -> Result<Self> {
        let (out, feed_forward) = (reader.at("attn").at(out), reader.at(feed_forward));
        Ok(Self {
            out_proj: out.linear(width, width)?,
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
        let BlockShape { heads, norm, attentions, text } = shape;
        let (width, attention) = (heads.width(), reader.at("attn"));
        let self_attention = || -> Result<(QkvProjections, Linear)> {
            let reader = reader.at("attn2");
            let out = reader.at(IMAGE.out).linear(width, width)?;
            Ok((QkvProjections::load(&reader, &IMAGE, heads, norm)?, out))
        };
        let dual = attentions == Attentions::Dual;
        let image = Stream {
            modulation: Modulation::load(&reader.at("norm1"), width, if dual { 9 } else { 6 })?,
            qkv_proj: QkvProjections::load(&attention, &IMAGE, heads, norm)?,
            rest: Some(StreamRest::load(reader, IMAGE.out, "ff", width)?),
            self_attention: dual.then(self_attention).transpose()?,
        };
        let goes_on = text == TextStream::GoesOn;
        let rest = || StreamRest::load(reader, TEXT.out, "ff_context", width);
        let text = Stream {
            modulation: Modulation::load(&reader.at("norm1_context"), width, if goes_on { 6 } else { 2 })?,
            qkv_proj: QkvProjections::load(&attention, &TEXT, heads, norm)?,
            rest: goes_on.then(rest).transpose()?,
            self_attention: None,
        };
        Ok(Self { image, text })
    }

    /// Image and text, `(rows, width)` each, to the same shapes. `embedding` is that of timestep and text,
    /// `(1, width)`.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        embedding: &Tensor,
        rope: Option<&InterleavedRope>,
    ) -> Result<(Tensor, Tensor)> {
        let modulated_image = self.image.modulate(image, embedding)?;
        let modulated_text = self.text.modulate(text, embedding)?;
        let [query, key, value] = self.image.qkv_proj.forward(&modulated_image.normal)?;
        let [text_query, text_key, text_value] = self.text.qkv_proj.forward(&modulated_text.normal)?;
        let join = |text: Tensor, image: Tensor| Tensor::cat(&[text, image], 0);
        let qkv = [join(text_query, query)?, join(text_key, key)?, join(text_value, value)?];
        let out = self.image.qkv_proj.attention(qkv, rope)?;
        let count = text.dim(0)?;
        let image_out = out.narrow(0, count, image.dim(0)?)?.contiguous()?;
        let text_out = out.narrow(0, 0, count)?.contiguous()?;
        drop(out);
        let image = self.image.finish(image, &image_out, modulated_image)?;
        Ok((image, self.text.finish(text, &text_out, modulated_text)?))
    }
}

/// Input of a stream's attentions, and the modulation of what follows them.
struct ModulatedStream {
    normal: Tensor,
    /// Gate of the attention; shift, scale and gate of the feed-forward layer.
    rest: Option<[Tensor; 4]>,
    /// Input of the self-attention, and its gate.
    self_attention: Option<[Tensor; 2]>,
}

impl Stream {
    fn modulate(&self, rows: &Tensor, embedding: &Tensor) -> Result<ModulatedStream> {
        if self.rest.is_none() {
            let [scale, shift] = self.modulation.parts(embedding)?;
            let normal = modulated_norm(rows, &shift, &scale)?;
            return Ok(ModulatedStream { normal, rest: None, self_attention: None });
        }
        if self.self_attention.is_none() {
            let [shift, scale, gate, ff_shift, ff_scale, ff_gate] = self.modulation.parts(embedding)?;
            let normal = modulated_norm(rows, &shift, &scale)?;
            let rest = Some([gate, ff_shift, ff_scale, ff_gate]);
            return Ok(ModulatedStream { normal, rest, self_attention: None });
        }
        let [shift, scale, gate, ff_shift, ff_scale, ff_gate, shift2, scale2, gate2] =
            self.modulation.parts(embedding)?;
        Ok(ModulatedStream {
            normal: modulated_norm(rows, &shift, &scale)?,
            rest: Some([gate, ff_shift, ff_scale, ff_gate]),
            self_attention: Some([modulated_norm(rows, &shift2, &scale2)?, gate2]),
        })
    }

    /// Does what follows the joint attention, of which `attention` is the output.
    fn finish(&self, rows: &Tensor, attention: &Tensor, modulated: ModulatedStream) -> Result<Tensor> {
        let (Some(rest), Some([gate, shift, scale, ff_gate])) = (&self.rest, modulated.rest) else {
            return Ok(rows.clone());
        };
        let mut rows = gated_residual(rows, &gate, &rest.out_proj.forward(attention, Activation::Identity)?)?;
        if let (Some((qkv_proj, out_proj)), Some([normal, gate])) =
            (&self.self_attention, modulated.self_attention)
        {
            let out = qkv_proj.attention(qkv_proj.forward(&normal)?, None)?;
            rows = gated_residual(&rows, &gate, &out_proj.forward(&out, Activation::Identity)?)?;
        }
        let update = rest.feed_forward.forward(&modulated_norm(&rows, &shift, &scale)?)?;
        gated_residual(&rows, &ff_gate, &update)
    }
}
