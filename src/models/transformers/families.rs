//! Families of candle-transformers whose state is a cache beside the model, or a clone of a model that keeps its cache
//! inside. All workers share the weights of both.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    falcon, glm4, glm4_new, granitemoehybrid, helium, lfm2, mixtral, olmo, olmo2, recurrent_gemma, starcoder2,
};
use serde_json::Value;

use crate::architecture::Family;
use crate::language_model::{Described, ModelShape, PromptReading, TransformersModel, family};

/// A family whose model keeps its cache inside: a text has a clone of one that has never run.
macro_rules! cloned {
    ($name:ident: $model:ty, $config:ty, $type:literal, [$($architecture:literal),*] $({ $($more:tt)* })?) => {
        struct $name($model);

        impl TransformersModel for $name {
            type Config = $config;
            type Stream = $model;
            const MODEL_TYPE: &'static str = $type;
            const ARCHITECTURES: &'static [&'static str] = &[$($architecture),*];
            $($($more)*)?

            fn load(config: &$config, weights: VarBuilder<'static>) -> Result<Self> {
                <$model>::new(config, weights).map(Self)
            }

            fn begin(&self) -> Result<$model> {
                Ok(self.0.clone())
            }

            fn forward(&self, text: &mut $model, tokens: &Tensor, before: usize) -> Result<Tensor> {
                text.forward(tokens, before)
            }
        }
    };
}

pub(super) const OLMO: Family<Described> = family::<Olmo>();
pub(super) const OLMO2: Family<Described> = family::<Olmo2>();
pub(super) const GLM4: Family<Described> = family::<Glm4>();
pub(super) const STARCODER2: Family<Described> = family::<Starcoder2>();
pub(super) const HELIUM: Family<Described> = family::<Helium>();
pub(super) const MIXTRAL: Family<Described> = family::<Mixtral>();
pub(super) const FALCON: Family<Described> = family::<Falcon>();
pub(super) const CHATGLM: Family<Described> = family::<ChatGlm>();
pub(super) const LFM2: Family<Described> = family::<Lfm2>();
pub(super) const GRANITE: Family<Described> = family::<Granite>();
pub(super) const RECURRENT_GEMMA: Family<Described> = family::<RecurrentGemma>();
pub(super) const GRANITE_HYBRID: Family<Described> = family::<GraniteHybrid>();

cloned!(Olmo: olmo::Model, olmo::Config, "olmo", ["OlmoForCausalLM"] {
    const DEFAULTS: &'static str = r#"{"rope_theta": 10000.0, "attention_bias": false, "tie_word_embeddings": false}"#;
});

cloned!(Olmo2: olmo2::Model, olmo2::Config, "olmo2", ["Olmo2ForCausalLM"] {
    const DEFAULTS: &'static str = r#"{"attention_bias": false, "tie_word_embeddings": false}"#;
});

cloned!(Glm4: glm4_new::ModelForCausalLM, glm4_new::Config, "glm4", ["Glm4ForCausalLM"] {
    const DEFAULTS: &'static str = r#"{"tie_word_embeddings": false}"#;
});

cloned!(Starcoder2: starcoder2::Model, starcoder2::Config, "starcoder2", ["Starcoder2ForCausalLM"] {
    const FIXED: &'static [(&'static str, &'static str)] =
        &[("tie_word_embeddings", "true"), ("mlp_type", r#""default""#), ("norm_type", r#""layer_norm""#)];
});

cloned!(Helium: helium::Model, helium::Config, "helium", ["HeliumForCausalLM"] {
    const DEFAULTS: &'static str = r#"{"bos_token_id": 1, "eos_token_id": 2}"#;
});

cloned!(Mixtral: mixtral::Model, mixtral::Config, "mixtral", ["MixtralForCausalLM"] {
    // The library has a window in any case: as far as positions go, it is none.
    const DEFAULTS: &'static str =
        r#"{"use_flash_attn": false, "sliding_window": 1048576, "tie_word_embeddings": false}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[("tie_word_embeddings", "false")];
});

struct RecurrentGemma(recurrent_gemma::Model);

impl TransformersModel for RecurrentGemma {
    type Config = recurrent_gemma::Config;
    type Stream = recurrent_gemma::Model;
    const MODEL_TYPE: &'static str = "recurrent_gemma";
    const ARCHITECTURES: &'static [&'static str] = &["RecurrentGemmaForCausalLM"];
    const FIXED: &'static [(&'static str, &'static str)] =
        &[("tie_word_embeddings", "true"), ("embeddings_scale_by_sqrt_dim", "true")];
    // A convolution over a piece does not see what was before it.
    const PROMPTS: PromptReading = PromptReading::FirstPiece;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let mut settings = settings.clone();
        let window = settings.get("attention_window_size").cloned();
        if let (Some(settings), Some(window)) = (settings.as_object_mut(), window) {
            // The library's attention has no window, so texts end at the model's.
            settings.insert("max_position_embeddings".to_owned(), window);
        }
        let shape = ModelShape::read(&settings)?;
        let state = 4u64.saturating_mul((shape.layers * shape.width) as u64).saturating_mul(8);
        Ok(shape.with_state_bytes(state))
    }

    fn load(config: &recurrent_gemma::Config, weights: VarBuilder<'static>) -> Result<Self> {
        recurrent_gemma::Model::new(config, weights.pp("model")).map(Self)
    }

    fn begin(&self) -> Result<recurrent_gemma::Model> {
        Ok(self.0.clone())
    }

    fn forward(&self, text: &mut recurrent_gemma::Model, tokens: &Tensor, before: usize) -> Result<Tensor> {
        text.forward(tokens, before)
    }
}

/// GLM-4 and CodeGeeX 4 under the names of their own code.
struct ChatGlm(glm4::Model);

impl TransformersModel for ChatGlm {
    type Config = glm4::Config;
    type Stream = glm4::Model;
    const MODEL_TYPE: &'static str = "chatglm";
    const ARCHITECTURES: &'static [&'static str] = &["ChatGLMModel", "ChatGLMForConditionalGeneration"];
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("original_rope", "true"),
        ("rmsnorm", "true"),
        ("post_layer_norm", "true"),
        ("apply_residual_connection_post_layernorm", "false"),
        ("add_bias_linear", "false"),
        ("tie_word_embeddings", "false"),
        ("prefix_projection", "false"),
        ("pre_seq_len", "null"),
    ];
    // The mask of a piece does not reach behind it.
    const PROMPTS: PromptReading = PromptReading::FirstPiece;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let mut settings = settings.clone();
        if let Some(settings) = settings.as_object_mut() {
            let names = [
                ("max_position_embeddings", "seq_length"),
                ("vocab_size", "padded_vocab_size"),
                ("num_hidden_layers", "num_layers"),
                ("num_key_value_heads", "multi_query_group_num"),
                ("head_dim", "kv_channels"),
                ("intermediate_size", "ffn_hidden_size"),
            ];
            for (name, own) in names {
                let value = settings.get(own).cloned().unwrap_or_default();
                settings.insert(name.to_owned(), value);
            }
        }
        ModelShape::read(&settings)
    }

    fn load(config: &glm4::Config, weights: VarBuilder<'static>) -> Result<Self> {
        glm4::Model::new(config, weights).map(Self)
    }

    fn begin(&self) -> Result<glm4::Model> {
        Ok(self.0.clone())
    }

    fn forward(&self, text: &mut glm4::Model, tokens: &Tensor, _: usize) -> Result<Tensor> {
        text.forward(tokens)
    }
}

struct Falcon(falcon::Falcon);

impl TransformersModel for Falcon {
    type Config = falcon::Config;
    type Stream = falcon::Falcon;
    const MODEL_TYPE: &'static str = "falcon";
    const ARCHITECTURES: &'static [&'static str] = &["FalconForCausalLM"];
    const DEFAULTS: &'static str = r#"{"max_position_embeddings": 2048, "use_cache": true}"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("alibi", "false"),
        ("new_decoder_architecture", "false"),
        ("rope_theta", "10000"),
        ("use_cache", "true"),
        ("activation", r#""gelu""#),
    ];
    // The mask of a piece does not reach behind it.
    const PROMPTS: PromptReading = PromptReading::FirstPiece;

    fn shape(settings: &Value) -> std::result::Result<ModelShape, String> {
        let shape = ModelShape::read(settings)?;
        let kept = if settings.get("multi_query") == Some(&Value::Bool(true)) { 1 } else { shape.heads };
        let size = shape.head_size;
        Ok(shape.with_cache(kept, size))
    }

    fn other_names(tensor: &str) -> Vec<String> {
        let tied = (tensor == "lm_head.weight").then(|| "transformer.word_embeddings.weight".to_owned());
        tied.into_iter().collect()
    }

    fn load(config: &falcon::Config, weights: VarBuilder<'static>) -> Result<Self> {
        config.validate()?;
        falcon::Falcon::load(weights, config.clone()).map(Self)
    }

    fn begin(&self) -> Result<falcon::Falcon> {
        Ok(self.0.clone())
    }

    fn forward(&self, text: &mut falcon::Falcon, tokens: &Tensor, _: usize) -> Result<Tensor> {
        text.forward(tokens)
    }
}

/// A family whose cache is apart from the model. A text has a clone of an empty one, with which it shares the tables of
/// positions.
struct WithCache<Model, Cache> {
    model: Model,
    empty: Cache,
}

type Lfm2 = WithCache<lfm2::Model, lfm2::Cache>;

/// The settings of LFM2, from which transformers computes the width of the feed-forward network otherwise than the library.
#[derive(Clone, serde::Deserialize)]
struct Lfm2Config {
    #[serde(flatten)]
    base: lfm2::Lfm2Config,
    intermediate_size: Option<usize>,
    block_ff_dim: Option<usize>,
    block_auto_adjust_ff_dim: bool,
    block_ffn_dim_multiplier: Option<f64>,
    block_multiple_of: usize,
    tie_word_embeddings: bool,
    tie_embedding: Option<bool>,
}

impl Lfm2Config {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "rounded as transformers does"
    )]
    fn intermediate(&self) -> usize {
        let width = self.block_ff_dim.or(self.intermediate_size).unwrap_or(12_288);
        if !self.block_auto_adjust_ff_dim {
            return width;
        }
        let shortened = (2.0 * width as f64 / 3.0) as usize;
        match self.block_ffn_dim_multiplier {
            Some(factor) => {
                let multiple = self.block_multiple_of.max(1);
                ((factor * shortened as f64) as usize).div_ceil(multiple).saturating_mul(multiple)
            }
            None => shortened,
        }
    }
}

impl TransformersModel for Lfm2 {
    type Config = Lfm2Config;
    type Stream = lfm2::Cache;
    const MODEL_TYPE: &'static str = "lfm2";
    const ARCHITECTURES: &'static [&'static str] = &["Lfm2ForCausalLM"];
    const DEFAULTS: &'static str = r#"{
        "tie_word_embeddings": true, "block_auto_adjust_ff_dim": true, "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0
    }"#;
    const FIXED: &'static [(&'static str, &'static str)] = &[("conv_bias", "false")];
    // A convolution over a piece does not see what was before it.
    const PROMPTS: PromptReading = PromptReading::FirstPiece;

    fn load(config: &Lfm2Config, weights: VarBuilder<'static>) -> Result<Self> {
        let mut sizes = config.base.clone().into_config(false);
        sizes.intermediate_size = config.intermediate();
        sizes.tie_embedding = config.tie_embedding.unwrap_or(config.tie_word_embeddings);
        let empty = lfm2::Cache::new(true, DType::F32, &sizes, weights.device())?;
        Ok(Self { model: lfm2::Model::new(&sizes, weights)?, empty })
    }

    fn begin(&self) -> Result<lfm2::Cache> {
        Ok(self.empty.clone())
    }

    fn forward(&self, cache: &mut lfm2::Cache, tokens: &Tensor, before: usize) -> Result<Tensor> {
        self.model.forward(tokens, before, cache)
    }
}

type GraniteHybrid = WithCache<granitemoehybrid::GraniteMoeHybrid, granitemoehybrid::GraniteMoeHybridCache>;

/// Settings that both kinds of Granite have at one value.
const GRANITE_FIXED: &[(&str, &str)] = &[
    ("tie_word_embeddings", "true"),
    ("attention_bias", "false"),
    ("hidden_act", r#""silu""#),
    ("mlp_bias", "false"),
    ("num_local_experts", "0"),
    ("position_embedding_type", r#""rope""#),
];

impl TransformersModel for GraniteHybrid {
    type Config = granitemoehybrid::GraniteMoeHybridConfig;
    type Stream = granitemoehybrid::GraniteMoeHybridCache;
    const MODEL_TYPE: &'static str = "granitemoehybrid";
    const ARCHITECTURES: &'static [&'static str] = &["GraniteMoeHybridForCausalLM"];
    const FIXED: &'static [(&'static str, &'static str)] = GRANITE_FIXED;

    fn load(config: &granitemoehybrid::GraniteMoeHybridConfig, weights: VarBuilder<'static>) -> Result<Self> {
        let config = config.clone().into_config(false);
        let empty =
            granitemoehybrid::GraniteMoeHybridCache::new(true, DType::F32, &config, weights.device())?;
        Ok(Self { model: granitemoehybrid::GraniteMoeHybrid::load(weights, &config)?, empty })
    }

    fn begin(&self) -> Result<granitemoehybrid::GraniteMoeHybridCache> {
        Ok(self.empty.clone())
    }

    fn forward(
        &self,
        cache: &mut granitemoehybrid::GraniteMoeHybridCache,
        tokens: &Tensor,
        before: usize,
    ) -> Result<Tensor> {
        self.model.forward(tokens, before, cache)
    }
}

/// Granite 3, in the library's model of Granite 4 without its recurrent layers: the blocks are the same, but for two matrices
/// that are one there. The library's own Granite leaves out all four multipliers.
struct Granite(GraniteHybrid);

impl TransformersModel for Granite {
    type Config = granitemoehybrid::GraniteMoeHybridConfig;
    type Stream = granitemoehybrid::GraniteMoeHybridCache;
    const MODEL_TYPE: &'static str = "granite";
    const ARCHITECTURES: &'static [&'static str] = &["GraniteForCausalLM"];
    const FIXED: &'static [(&'static str, &'static str)] = GRANITE_FIXED;

    fn other_names(tensor: &str) -> Vec<String> {
        vec![tensor.replace("shared_mlp.output_linear", "mlp.down_proj")]
    }

    fn joined(tensor: &str) -> Vec<String> {
        match tensor.strip_suffix("shared_mlp.input_linear.weight") {
            Some(layer) => ["gate", "up"].map(|name| format!("{layer}mlp.{name}_proj.weight")).to_vec(),
            None => Vec::new(),
        }
    }

    fn load(config: &granitemoehybrid::GraniteMoeHybridConfig, weights: VarBuilder<'static>) -> Result<Self> {
        GraniteHybrid::load(config, weights).map(Self)
    }

    fn begin(&self) -> Result<granitemoehybrid::GraniteMoeHybridCache> {
        self.0.begin()
    }

    fn forward(
        &self,
        cache: &mut granitemoehybrid::GraniteMoeHybridCache,
        tokens: &Tensor,
        before: usize,
    ) -> Result<Tensor> {
        self.0.forward(cache, tokens, before)
    }
}
