//! `granite.rs` reads none of Granite's four multipliers, with which all published models were trained: logits are the same
//! whatever they are. In the reference `logits_scaling` alone divides them by eight.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::granite::{Cache, Granite, GraniteConfig};

fn main() -> Result<()> {
    let map = VarMap::new();
    let mut logits = Vec::new();
    for multipliers in [
        r#""embedding_multiplier": 1, "attention_multiplier": 0.35, "residual_multiplier": 1, "logits_scaling": 1"#,
        r#""embedding_multiplier": 12, "attention_multiplier": 0.02, "residual_multiplier": 0.2, "logits_scaling": 8"#,
    ] {
        let config = format!(
            r#"{{"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 2,
                "num_attention_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 32, {multipliers}}}"#
        );
        let config: GraniteConfig = serde_json::from_str(&config).unwrap();
        let config = config.into_config(false);
        // The second model has the weights of the first.
        let model = Granite::load(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu), &config)?;
        let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
        let tokens = Tensor::new(&[[3u32, 5, 7, 11]], &Device::Cpu)?;
        logits.push(model.forward(&tokens, 0, &mut cache)?.flatten_all()?);
    }
    let difference = (&logits[0] - &logits[1])?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!(
        "largest difference of logits between two sets of multipliers: {difference}; it should not be 0"
    );
    Ok(())
}
