//! Random Llama that is large enough to measure the time and memory of its weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::root;

/// Writes a model of so many layers, of 7 million parameters each, with the tokenizer of the tiny one. It
/// never ends a text by itself. Returns the number of its parameters.
pub(crate) fn write_large_llama(folder: &Path, layers: usize) -> f64 {
    let tiny: PathBuf = root().join("tests/fixtures/text_to_text/llama");
    // Without the settings beside it, which name a token that ends a text.
    std::fs::copy(tiny.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    let (width, middle, heads) = (768, 2048, 12);
    let sizes = [
        ("hidden_size", width),
        ("intermediate_size", middle),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", heads),
        ("head_dim", width / heads),
        ("max_position_embeddings", 1024),
    ];
    for (name, size) in sizes {
        config[name] = size.into();
    }
    config["tie_word_embeddings"] = true.into();
    config["eos_token_id"] = serde_json::Value::Null;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let random = |shape: &[usize]| Tensor::randn(0.0f32, 0.02, shape, &Device::Cpu).unwrap();
    let ones = || Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), random(&[vocabulary, width])),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for layer in 0..layers {
        let mut add =
            |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), random(&[width, width]));
        }
        add("mlp.gate_proj", random(&[middle, width]));
        add("mlp.up_proj", random(&[middle, width]));
        add("mlp.down_proj", random(&[width, middle]));
        add("input_layernorm", ones());
        add("post_attention_layernorm", ones());
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    tensors.values().map(|tensor| tensor.elem_count() as f64).sum()
}
