//! LFM2 (Liquid AI, 2025), of attention and short convolutions. The library's model holds its state and can be neither cloned
//! nor cleared, but a piece of several tokens at the beginning of a text leaves nothing of the last one: so one model writes
//! one text after another, and a text has to begin with more than one token.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Error, Result, Tensor};
use candle_transformers::models::quantized_lfm2::ModelWeights;

use super::super::FIRST_PIECE;
use super::{Architecture, Metadata, Model, TensorReader, named};
use crate::error;
use crate::language_model::{Begin, Forward, PromptReading, TextsPerWorker};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "lfm2",
    // A convolution over a piece does not see what was before it.
    prompts: PromptReading::FirstPiece,
    texts: TextsPerWorker::One,
    describe,
    begin,
};

fn describe(metadata: &Metadata<'_>) -> error::Result<Model> {
    let counts = metadata.of_layers("attention.head_count_kv")?;
    let counts = counts.ok_or_else(|| metadata.missing("attention.head_count_kv"))?;
    let shape = metadata.shape_with(counts.iter().copied().max().unwrap_or(0))?;
    let (width, heads, size, layers) = (shape.width, shape.heads, shape.head_size, shape.layers);
    if heads.checked_mul(size) != Some(width) {
        let found = size.to_string();
        return Err(metadata.unsupported("attention.key_length", &found, "the width by the number of heads"));
    }
    let rotated = metadata.optional("rope.dimension_count")?.unwrap_or(size);
    if rotated != size || !size.is_multiple_of(2) {
        let expected = format!("{size}, a whole head of an even size");
        return Err(metadata.unsupported("rope.dimension_count", &rotated.to_string(), expected));
    }
    let taps = metadata.required("shortconv.l_cache")?;
    let (epsilon, base) = ("attention.layer_norm_rms_epsilon", metadata.float("rope.freq_base"));
    let number = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    // Files have the last norm under one of two names.
    let norms = ["output_norm.weight", "token_embd_norm.weight"];
    let norm = norms.into_iter().find(|name| metadata.file.contains(name)).unwrap_or(norms[1]);
    let mut tensors = named("", &[("token_embd.weight", &[shape.vocabulary, width]), (norm, &[width])]);
    let optional = named("", &[("output.weight", &[shape.vocabulary, width])]);
    for (layer, count) in counts.iter().enumerate() {
        let (path, keys, inner) = (format!("blk.{layer}."), count * size, shape.intermediate);
        tensors.extend(named(
            &path,
            &[
                ("attn_norm.weight", &[width]),
                ("ffn_norm.weight", &[width]),
                ("ffn_gate.weight", &[inner, width]),
                ("ffn_up.weight", &[inner, width]),
                ("ffn_down.weight", &[width, inner]),
            ],
        ));
        if *count == 0 {
            tensors.extend(named(
                &path,
                &[
                    ("shortconv.conv.weight", &[width, taps]),
                    ("shortconv.in_proj.weight", &[3 * width, width]),
                    ("shortconv.out_proj.weight", &[width, width]),
                ],
            ));
            continue;
        }
        if !heads.is_multiple_of(*count) {
            return Err(metadata.file.invalid(format!("{heads} heads cannot share the keys of {count}")));
        }
        tensors.extend(named(
            &path,
            &[
                ("attn_q.weight", &[width, width]),
                ("attn_k.weight", &[keys, width]),
                ("attn_v.weight", &[keys, width]),
                ("attn_output.weight", &[width, width]),
                ("attn_q_norm.weight", &[size]),
                ("attn_k_norm.weight", &[size]),
            ],
        ));
    }
    let counts = counts.iter().map(|count| number(*count)).collect();
    let metadata = vec![
        ("attention.head_count", number(heads)),
        ("attention.head_count_kv", Value::Array(counts)),
        ("embedding_length", number(width)),
        ("context_length", number(shape.context)),
        ("block_count", number(layers)),
        (epsilon, Value::F32(metadata.float(epsilon).ok_or_else(|| metadata.missing(epsilon))? as f32)),
        ("rope.freq_base", Value::F32(base.unwrap_or(10_000.0) as f32)),
        ("shortconv.l_cache", number(taps)),
    ];
    // States of convolutions, and masks of all lengths of first pieces, which the library keeps.
    let masks = (FIRST_PIECE * FIRST_PIECE * FIRST_PIECE / 3) as u64;
    let states =
        [layers, taps, width].into_iter().fold(8, |bytes: u64, side| bytes.saturating_mul(side as u64));
    Ok(Model { shape: shape.with_state_bytes(masks.saturating_add(states)), metadata, tensors, optional })
}

/// The model of a text, which it takes when it begins and gives back at its end.
struct Taken {
    model: Option<ModelWeights>,
    home: Arc<Mutex<Option<ModelWeights>>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(model) = self.model.take() {
            *self.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(model);
        }
    }
}

impl Taken {
    fn forward(&mut self, tokens: &Tensor, before: usize) -> Result<Tensor> {
        if before == 0 && tokens.elem_count() == 1 {
            return Err(Error::msg("a text of this model has to begin with more than one token"));
        }
        if before == 0 && self.model.is_none() {
            self.model = self.home.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        match &mut self.model {
            Some(model) => model.forward(tokens, before),
            None => Err(Error::msg("the model writes one text at a time")),
        }
    }
}

fn begin(content: Content, reader: &mut TensorReader<'_>, device: &Device) -> Result<Begin> {
    let home = Arc::new(Mutex::new(Some(ModelWeights::from_gguf(content, reader, device)?)));
    Ok(Box::new(move || {
        // Answers to one prompt begin together, and are written one after another.
        let mut text = Taken { model: None, home: Arc::clone(&home) };
        let forward: Forward = Box::new(move |tokens: &Tensor, before| text.forward(tokens, before));
        Ok(forward)
    }))
}
