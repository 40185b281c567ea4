//! The convolutions of `lfm2.rs` and of `mamba2.rs` (`forward_prefill`) begin every piece of a prompt with zeros, although
//! the cache has the tokens before it. So a prompt that is read in two pieces has other logits than the same at once.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{lfm2, mamba2};

const TOKENS: [[u32; 8]; 1] = [[3, 5, 7, 11, 2, 13, 17, 6]];

/// Random weights for whatever a model has asked for.
fn fill(map: &VarMap) -> Result<()> {
    for var in map.all_vars() {
        var.set(&var.randn_like(0.0, 0.5)?)?;
    }
    Ok(())
}

/// Difference of the last logits between one piece and two.
fn compare(name: &str, read: impl Fn(&[&Tensor]) -> Result<Tensor>) -> Result<()> {
    let all = Tensor::new(&TOKENS, &Device::Cpu)?;
    let (first, second) = (all.narrow(1, 0, 6)?.contiguous()?, all.narrow(1, 6, 2)?.contiguous()?);
    let (once, twice) = (read(&[&all])?, read(&[&first, &second])?);
    let difference = (once - twice)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!(
        "{name}: largest difference of logits between one piece and two: {difference:.1e}; it should be around 1e-6"
    );
    Ok(())
}

fn main() -> Result<()> {
    let map = VarMap::new();
    let config = r#"{"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "norm_eps": 1e-5, "max_position_embeddings": 32,
        "layer_types": ["conv"], "block_multiple_of": 16, "tie_embedding": true}"#;
    let config: lfm2::Lfm2Config = serde_json::from_str(config).unwrap();
    let config = config.into_config(false);
    let model = lfm2::Model::new(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    fill(&map)?;
    compare("lfm2", |pieces| {
        let mut cache = lfm2::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
        let mut before = 0;
        let mut logits = None;
        for piece in pieces {
            logits = Some(model.forward(piece, before, &mut cache)?.flatten_all()?);
            before += piece.dim(1)?;
        }
        Ok(logits.unwrap())
    })?;

    let map = VarMap::new();
    let config =
        r#"{"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 8, "head_dim": 8}"#;
    let config: mamba2::Config = serde_json::from_str(config).unwrap();
    let model = mamba2::Model::new(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    fill(&map)?;
    compare("mamba2", |pieces| {
        let mut state = mamba2::State::new(1, &config, DType::F32, &Device::Cpu)?;
        let mut logits = None;
        for piece in pieces {
            let all = model.forward_prefill(piece, &mut state, 4)?;
            logits = Some(all.narrow(1, piece.dim(1)? - 1, 1)?.flatten_all()?);
        }
        Ok(logits.unwrap())
    })
}
