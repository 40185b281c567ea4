//! GLM-4 (GLM-4-9B-0414 and the like), whose model holds its cache: a text has a clone of one that has never run.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Result, Tensor};
use candle_transformers::models::quantized_glm4::ModelWeights;

use super::{Architecture, Metadata, Model, TensorReader, named};
use crate::error;
use crate::language_model::{Begin, Forward, PromptReading, TextsPerWorker};

/// Tokens by which the library lets a cache grow.
const GROWTH: u64 = 512;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4",
    prompts: PromptReading::Pieces,
    texts: TextsPerWorker::Many,
    describe,
    begin,
};

fn describe(metadata: &Metadata<'_>) -> error::Result<Model> {
    let shape = metadata.shape()?;
    let (width, heads, kv_heads, size) = (shape.width, shape.heads, shape.kv_heads, shape.head_size);
    let rotated = metadata.optional("rope.dimension_count")?.unwrap_or(size);
    if rotated.checked_mul(2) != Some(size) || !rotated.is_multiple_of(2) {
        // The library has it at one half, in pairs.
        let (found, half) = (rotated.to_string(), format!("{}, half of a head", size / 2));
        return Err(metadata.unsupported("rope.dimension_count", &found, half));
    }
    let (epsilon, base) = ("attention.layer_norm_rms_epsilon", metadata.float("rope.freq_base"));
    let number = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    let mut tensors =
        named("", &[("token_embd.weight", &[shape.vocabulary, width]), ("output_norm.weight", &[width])]);
    let mut optional = named("", &[("output.weight", &[shape.vocabulary, width])]);
    let (queries, keys, inner) = (heads * size, kv_heads * size, shape.intermediate);
    for layer in 0..shape.layers {
        let path = format!("blk.{layer}.");
        tensors.extend(named(
            &path,
            &[
                ("attn_norm.weight", &[width]),
                ("post_attention_norm.weight", &[width]),
                ("ffn_norm.weight", &[width]),
                ("post_ffw_norm.weight", &[width]),
                ("attn_q.weight", &[queries, width]),
                ("attn_k.weight", &[keys, width]),
                ("attn_v.weight", &[keys, width]),
                ("attn_output.weight", &[width, queries]),
                ("ffn_up.weight", &[2 * inner, width]),
                ("ffn_down.weight", &[width, inner]),
            ],
        ));
        let biases: [(&str, &[usize]); 3] =
            [("attn_q.bias", &[queries]), ("attn_k.bias", &[keys]), ("attn_v.bias", &[keys])];
        optional.extend(named(&path, &biases));
    }
    let metadata = vec![
        ("attention.head_count", number(heads)),
        ("attention.head_count_kv", number(kv_heads)),
        ("attention.key_length", number(size)),
        ("block_count", number(shape.layers)),
        ("embedding_length", number(width)),
        ("context_length", number(shape.context)),
        (epsilon, Value::F32(metadata.float(epsilon).ok_or_else(|| metadata.missing(epsilon))? as f32)),
        ("rope.freq_base", Value::F32(base.unwrap_or(10_000.0) as f32)),
    ];
    let growth = shape.cache_bytes(1).saturating_mul(GROWTH);
    Ok(Model { shape: shape.with_state_bytes(growth), metadata, tensors, optional })
}

fn begin(content: Content, reader: &mut TensorReader<'_>, device: &Device) -> Result<Begin> {
    let model = ModelWeights::from_gguf(content, reader, device, DType::F32)?;
    Ok(Box::new(move || {
        let mut text = model.clone();
        let forward: Forward = Box::new(move |tokens: &Tensor, before| text.forward(tokens, before));
        Ok(forward)
    }))
}
