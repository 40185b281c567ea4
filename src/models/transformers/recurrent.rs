//! Recurrent families of candle-transformers: the state is beside the model, of one size however long the text, and takes
//! one token at a time.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{mamba, mamba2};
use serde_json::Value;

use crate::architecture::Family;
use crate::language_model::{Described, ModelShape, PromptReading, TransformersModel, family};

pub(super) const MAMBA: Family<Described> = family::<Mamba>();
pub(super) const MAMBA2: Family<Described> = family::<Mamba2>();

/// Tokens of a text whose model names no bound: as far as a state has been trained to last.
const CONTEXT: usize = 1 << 20;

fn size(settings: &Value, name: &str) -> usize {
    settings.get(name).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok()).unwrap_or(0)
}

/// The sizes of a model that keeps nothing of single tokens, and a state of so many numbers for each layer.
fn shape(settings: &Value, state: usize) -> std::result::Result<ModelShape, String> {
    let mut settings = settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.insert("max_position_embeddings".to_owned(), CONTEXT.into());
        settings.insert("num_attention_heads".to_owned(), 1.into());
        settings.insert("head_dim".to_owned(), 1.into());
    }
    let shape = ModelShape::read(&settings)?.with_cache(0, 1);
    // While a layer computes its new state, the old one and the sum's parts are there too.
    let bytes = (shape.layers as u64).saturating_add(4).saturating_mul(4).saturating_mul(state as u64);
    Ok(shape.with_state_bytes(bytes))
}

struct Mamba {
    model: mamba::Model,
    config: mamba::Config,
    device: Device,
}

/// The settings under the names of transformers.
#[derive(Clone, serde::Deserialize)]
pub(super) struct MambaConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
}

impl TransformersModel for Mamba {
    type Config = MambaConfig;
    type Stream = mamba::State;
    const MODEL_TYPE: &'static str = "mamba";
    const ARCHITECTURES: &'static [&'static str] = &["MambaForCausalLM"];
    const DEFAULTS: &'static str = r#"{"max_position_embeddings": null}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("conv_kernel", "4"),
        ("state_size", "16"),
        ("expand", "2"),
        ("layer_norm_epsilon", "1e-5"),
        ("use_bias", "false"),
        ("use_conv_bias", "true"),
        ("hidden_act", r#""silu""#),
        ("tie_word_embeddings", "true"),
    ];
    const PROMPTS: PromptReading = PromptReading::Tokens;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let width = size(settings, "hidden_size");
        for (name, inferred) in
            [("time_step_rank", width.div_ceil(16)), ("intermediate_size", width.saturating_mul(2))]
        {
            if let Some(found) = settings.get(name).and_then(Value::as_u64)
                && found != inferred as u64
            {
                return Err(format!("{name} is {found}; the library has {inferred} for this width"));
            }
        }
        // A state of 16 numbers and a window of 4 for each channel.
        shape(settings, width.saturating_mul(2 * (16 + 4)))
    }

    fn other_names(tensor: &str) -> Vec<String> {
        vec![tensor.replace("backbone.embedding.", "backbone.embeddings.")]
    }

    fn has_no_effect(tensor: &str) -> bool {
        // It is the embedding.
        tensor == "lm_head.weight"
    }

    fn load(config: &MambaConfig, weights: VarBuilder<'static>) -> Result<Self> {
        let config = mamba::Config {
            d_model: config.hidden_size,
            n_layer: config.num_hidden_layers,
            vocab_size: config.vocab_size,
            pad_vocab_size_multiple: 1,
        };
        let device = weights.device().clone();
        Ok(Self { model: mamba::Model::new(&config, weights.pp("backbone"))?, config, device })
    }

    fn begin(&self) -> Result<mamba::State> {
        mamba::State::new(1, &self.config, DType::F32, &self.device)
    }

    fn forward(&self, state: &mut mamba::State, tokens: &Tensor, _: usize) -> Result<Tensor> {
        self.model.forward(&tokens.flatten_all()?, state)
    }
}

struct Mamba2 {
    model: mamba2::Model,
    config: mamba2::Config,
    device: Device,
}

impl TransformersModel for Mamba2 {
    type Config = mamba2::Config;
    type Stream = mamba2::State;
    const MODEL_TYPE: &'static str = "mamba2";
    const ARCHITECTURES: &'static [&'static str] = &["Mamba2ForCausalLM"];
    const DEFAULTS: &'static str = r#"{"pad_vocab_size_multiple": 1}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("conv_kernel", "4"),
        ("layer_norm_epsilon", "1e-5"),
        ("use_bias", "false"),
        ("use_conv_bias", "true"),
        ("hidden_act", r#""silu""#),
        ("tie_word_embeddings", "true"),
        ("rms_norm", "true"),
        // The library normalises all groups together.
        ("n_groups", "1"),
    ];
    const PROMPTS: PromptReading = PromptReading::Tokens;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let named = |name, default| if settings.get(name).is_some() { size(settings, name) } else { default };
        let (width, expand) = (size(settings, "hidden_size"), named("expand", 2));
        let (state, groups) = (named("state_size", 64), named("n_groups", 1));
        let (head, inner) = (named("head_dim", 64), width.saturating_mul(expand));
        if head == 0 || groups == 0 || !inner.is_multiple_of(head) || !(inner / head).is_multiple_of(groups) {
            return Err(format!("{inner} channels have no heads of {head} in {groups} groups"));
        }
        if let Some(found) = settings.get("num_heads").and_then(Value::as_u64)
            && found != (inner / head) as u64
        {
            return Err(format!(
                "num_heads is {found}; {inner} channels have {} heads of {head}",
                inner / head
            ));
        }
        let window = inner.saturating_add(groups.saturating_mul(2).saturating_mul(state)).saturating_mul(4);
        shape(settings, inner.saturating_mul(state).saturating_add(window))
    }

    fn has_no_effect(tensor: &str) -> bool {
        tensor == "lm_head.weight"
    }

    fn load(config: &mamba2::Config, weights: VarBuilder<'static>) -> Result<Self> {
        let device = weights.device().clone();
        Ok(Self {
            model: mamba2::Model::new(config, weights.pp("backbone"))?,
            config: config.clone(),
            device,
        })
    }

    fn begin(&self) -> Result<mamba2::State> {
        mamba2::State::new(1, &self.config, DType::F32, &self.device)
    }

    fn forward(&self, state: &mut mamba2::State, tokens: &Tensor, _: usize) -> Result<Tensor> {
        self.model.forward(&tokens.flatten_all()?, state)
    }
}
