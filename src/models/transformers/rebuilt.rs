//! Families of candle-transformers that can be neither cloned nor cleared: each text has a model of its own, built anew from
//! the same tensors, which makes tables and masks and copies no weight. A worker writes one text at a time.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bigcode, deepseek2, stable_lm};
use serde_json::Value;

use crate::architecture::Family;
use crate::language_model::{Described, ModelShape, TextsPerWorker, TransformersModel, family};

pub(super) const DEEPSEEK2: Family<Described> = family::<Rebuilt<deepseek2::DeepSeekV2>>();
pub(super) const STABLE_LM: Family<Described> = family::<Rebuilt<stable_lm::Model>>();
pub(super) const BIG_CODE: Family<Described> = family::<Rebuilt<bigcode::GPTBigCode>>();

/// A model as its tensors and its configuration.
struct Rebuilt<M: Whole> {
    weights: VarBuilder<'static>,
    config: M::Config,
}

/// A model of the library that holds its cache and cannot be cloned.
trait Whole: Sized + Send + 'static {
    type Config: serde::de::DeserializeOwned + Clone + Send + Sync + 'static;
    const MODEL_TYPE: &'static str;
    const ARCHITECTURES: &'static [&'static str];
    const DEFAULTS: &'static str;
    const FIXED: &'static [(&'static str, &'static str)];

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String>;
    fn has_no_effect(_tensor: &str) -> bool {
        false
    }
    fn build(config: &Self::Config, weights: VarBuilder<'static>) -> Result<Self>;
    fn next(&mut self, tokens: &Tensor, before: usize) -> Result<Tensor>;
}

impl<M: Whole> TransformersModel for Rebuilt<M> {
    type Config = M::Config;
    type Stream = M;
    const MODEL_TYPE: &'static str = M::MODEL_TYPE;
    const ARCHITECTURES: &'static [&'static str] = M::ARCHITECTURES;
    const DEFAULTS: &'static str = M::DEFAULTS;
    const FIXED: &'static [(&'static str, &'static str)] = M::FIXED;
    const TEXTS: TextsPerWorker = TextsPerWorker::One;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        M::shape(settings)
    }

    fn has_no_effect(tensor: &str) -> bool {
        M::has_no_effect(tensor)
    }

    fn load(config: &M::Config, weights: VarBuilder<'static>) -> Result<Self> {
        // Built once so that every tensor is read and checked now.
        M::build(config, weights.clone())?;
        Ok(Self { weights, config: config.clone() })
    }

    fn begin(&self) -> Result<M> {
        M::build(&self.config, self.weights.clone())
    }

    fn forward(&self, text: &mut M, tokens: &Tensor, before: usize) -> Result<Tensor> {
        text.next(tokens, before)
    }
}

/// Refuses a scaling of rotary positions other than YaRN with all its numbers, of which the library would take a part for
/// another scaling.
fn check_yarn(scaling: Option<&Value>) -> std::result::Result<(), String> {
    const NUMBERS: [&str; 6] =
        ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"];
    let Some(Value::Object(scaling)) = scaling else { return Ok(()) };
    match scaling.get("type").and_then(Value::as_str) {
        Some("yarn") => {}
        other => return Err(format!("rope_scaling is of the type {other:?}; yarn is supported")),
    }
    match NUMBERS.into_iter().find(|name| !scaling.get(*name).is_some_and(Value::is_number)) {
        Some(missing) => Err(format!("rope_scaling has no number {missing}")),
        None => Ok(()),
    }
}

impl Whole for deepseek2::DeepSeekV2 {
    type Config = deepseek2::DeepSeekV2Config;
    const MODEL_TYPE: &'static str = "deepseek_v2";
    const ARCHITECTURES: &'static [&'static str] = &["DeepseekV2ForCausalLM"];
    const DEFAULTS: &'static str = r#"{"n_group": 1, "topk_group": 1, "attention_bias": false}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("topk_method", r#""greedy""#),
        ("norm_topk_prob", "false"),
        ("mlp_bias", "false"),
        ("scoring_func", r#""softmax""#),
        ("moe_layer_freq", "1"),
    ];

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let number = |name: &str| {
            let found = settings.get(name).and_then(Value::as_u64);
            found.and_then(|size| usize::try_from(size).ok()).ok_or_else(|| format!("it has no {name}"))
        };
        let (rope, nope) = (number("qk_rope_head_dim")?, number("qk_nope_head_dim")?);
        let (values, experts) = (number("v_head_dim")?, settings.get("n_routed_experts"));
        let needs = ["num_experts_per_tok", "moe_intermediate_size"];
        let lacks = needs.into_iter().find(|name| settings.get(*name).is_none_or(Value::is_null));
        if let (Some(lacking), Some(Value::Number(_))) = (lacks, experts) {
            return Err(format!("it has experts and no {lacking}"));
        }
        check_yarn(settings.get("rope_scaling"))?;
        let shape = ModelShape::read(settings)?;
        let kept = shape.heads;
        // Keys are longer than values.
        Ok(shape.with_cache(kept, rope.saturating_add(nope).max(values)))
    }

    fn build(config: &Self::Config, weights: VarBuilder<'static>) -> Result<Self> {
        Self::new(config, weights)
    }

    fn next(&mut self, tokens: &Tensor, before: usize) -> Result<Tensor> {
        self.forward(tokens, before)
    }
}

impl Whole for stable_lm::Model {
    type Config = stable_lm::Config;
    const MODEL_TYPE: &'static str = "stablelm";
    const ARCHITECTURES: &'static [&'static str] = &["StableLmForCausalLM"];
    const DEFAULTS: &'static str = r#"{"use_cache": true, "use_qkv_bias": false}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("qk_layernorm", "false"),
        ("use_parallel_residual", "false"),
        ("tie_word_embeddings", "false"),
        ("use_cache", "true"),
        ("use_flash_attn", "false"),
    ];

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        ModelShape::read(settings)
    }

    fn build(config: &Self::Config, weights: VarBuilder<'static>) -> Result<Self> {
        Self::new(config, weights)
    }

    fn next(&mut self, tokens: &Tensor, before: usize) -> Result<Tensor> {
        self.forward(tokens, before)
    }
}

/// The settings of GPT-BigCode under the names of its file; the library's type reads none.
#[derive(Clone, serde::Deserialize)]
pub(super) struct BigCodeConfig {
    vocab_size: usize,
    n_positions: usize,
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    layer_norm_epsilon: f64,
    n_inner: Option<usize>,
}

impl Whole for bigcode::GPTBigCode {
    type Config = BigCodeConfig;
    const MODEL_TYPE: &'static str = "gpt_bigcode";
    const ARCHITECTURES: &'static [&'static str] = &["GPTBigCodeForCausalLM"];
    const DEFAULTS: &'static str = "{}";
    // With a head of keys and values for each of queries, the library mistakes their order.
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("multi_query", "true"),
        ("activation_function", r#""gelu_pytorch_tanh""#),
        ("scale_attn_weights", "true"),
        ("tie_word_embeddings", "true"),
        ("add_cross_attention", "false"),
    ];

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let shape = ModelShape::read(settings)?;
        let (size, context) = (shape.head_size, shape.context as u64);
        // The mask of all positions.
        Ok(shape.with_cache(1, size).with_state_bytes(context.saturating_mul(context)))
    }

    fn has_no_effect(tensor: &str) -> bool {
        // The embedding, and masks of old files.
        tensor == "lm_head.weight" || tensor.ends_with(".attn.bias") || tensor.ends_with(".attn.masked_bias")
    }

    fn build(config: &Self::Config, weights: VarBuilder<'static>) -> Result<Self> {
        let config = bigcode::Config {
            vocab_size: config.vocab_size,
            max_position_embeddings: config.n_positions,
            num_hidden_layers: config.n_layer,
            hidden_size: config.n_embd,
            layer_norm_epsilon: config.layer_norm_epsilon,
            n_inner: config.n_inner,
            num_attention_heads: config.n_head,
            multi_query: true,
            use_cache: true,
        };
        Self::load(weights, config)
    }

    fn next(&mut self, tokens: &Tensor, before: usize) -> Result<Tensor> {
        self.forward(tokens, before)
    }
}
