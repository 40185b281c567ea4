//! Random models of candle-transformers of a hundred million parameters, one of each kind of state, in the files that are
//! read here and as the library itself runs them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{granitemoehybrid as granite, mamba, olmo2, stable_lm};
use serde_json::{Value, json};

use super::root;

/// A text in a model of the library: given the next tokens and how many there were before, the logits after them.
pub(crate) type Text = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor> + Send>;
/// A model of the library, by what begins a text.
pub(crate) type Begin = Box<dyn Fn() -> Result<Text> + Send + Sync>;

/// A family that stands for its kind of state.
#[derive(Clone, Copy)]
pub(crate) struct Large {
    pub(crate) name: &'static str,
    pub(crate) state: &'static str,
    /// The library takes one token of a prompt at a time.
    pub(crate) by_token: bool,
    sizes: fn() -> Value,
    load: fn(&Value, VarBuilder<'static>) -> Result<Begin>,
}

/// One of each kind of state.
pub(crate) const LARGE: [Large; 4] = [
    Large {
        name: "granitemoehybrid",
        state: "a cache",
        by_token: false,
        sizes: granite_sizes,
        load: granite,
    },
    Large { name: "olmo2", state: "a clone", by_token: false, sizes: usual_sizes, load: olmo2 },
    Large { name: "stablelm", state: "built anew", by_token: false, sizes: usual_sizes, load: stable_lm },
    Large { name: "mamba", state: "recurrent", by_token: true, sizes: mamba_sizes, load: mamba },
];

fn usual_sizes() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 15, "num_attention_heads": 12,
        "num_key_value_heads": 12, "max_position_embeddings": 1024,
    })
}

fn granite_sizes() -> Value {
    let mut sizes = usual_sizes();
    sizes["shared_intermediate_size"] = sizes["intermediate_size"].clone();
    sizes["layer_types"] = vec!["attention"; 15].into();
    sizes
}

fn mamba_sizes() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 28, "time_step_rank": 48, "d_model": 768,
        "d_inner": 1536, "n_layer": 28,
    })
}

impl Large {
    /// Writes the model with the tokenizer of the tiny one; it never ends a text by itself. Gives the model of the library
    /// over the same numbers, and how many there are.
    pub(crate) fn write(&self, folder: &Path) -> (Begin, usize) {
        let tiny: PathBuf = root().join("tests/fixtures/transformers").join(self.name);
        std::fs::copy(tiny.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend((self.sizes)().as_object().unwrap().clone());
        for end in ["eos_token_id", "pad_token_id"] {
            config[end] = Value::Null;
        }
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        // The library makes what it asks for.
        let map = VarMap::new();
        let model = (self.load)(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap();
        map.save(folder.join("model.safetensors")).unwrap();
        (model, map.all_vars().iter().map(|tensor| tensor.elem_count()).sum())
    }
}

fn settings<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap()
}

fn granite(config: &Value, weights: VarBuilder<'static>) -> Result<Begin> {
    let config = settings::<granite::GraniteMoeHybridConfig>(config).into_config(false);
    let model = Arc::new(granite::GraniteMoeHybrid::load(weights, &config)?);
    let empty = granite::GraniteMoeHybridCache::new(true, DType::F32, &config, &Device::Cpu)?;
    Ok(Box::new(move || {
        let (model, mut cache) = (Arc::clone(&model), empty.clone());
        Ok(Box::new(move |tokens, before| model.forward(tokens, before, &mut cache)))
    }))
}

fn olmo2(config: &Value, weights: VarBuilder<'static>) -> Result<Begin> {
    let model = olmo2::Model::new(&settings(config), weights)?;
    Ok(Box::new(move || {
        let mut model = model.clone();
        Ok(Box::new(move |tokens, before| model.forward(tokens, before)))
    }))
}

fn stable_lm(config: &Value, weights: VarBuilder<'static>) -> Result<Begin> {
    let mut config = config.clone();
    config["use_flash_attn"] = false.into();
    let config: stable_lm::Config = settings(&config);
    // Once now, so that the numbers are made.
    stable_lm::Model::new(&config, weights.clone())?;
    Ok(Box::new(move || {
        let mut model = stable_lm::Model::new(&config, weights.clone())?;
        Ok(Box::new(move |tokens, before| model.forward(tokens, before)))
    }))
}

fn mamba(config: &Value, weights: VarBuilder<'static>) -> Result<Begin> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let config = mamba::Config {
        d_model: size("hidden_size"),
        n_layer: size("num_hidden_layers"),
        vocab_size: size("vocab_size"),
        pad_vocab_size_multiple: 1,
    };
    let model = Arc::new(mamba::Model::new(&config, weights.pp("backbone"))?);
    Ok(Box::new(move || {
        let model = Arc::clone(&model);
        let mut state = mamba::State::new(1, &config, DType::F32, &Device::Cpu)?;
        Ok(Box::new(move |tokens, _| model.forward(&tokens.flatten_all()?, &mut state)))
    }))
}
