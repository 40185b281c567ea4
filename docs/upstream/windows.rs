//! Attention with a window of three sees four tokens, and all of them while decoding. In the reference a token sees the
//! last three, itself among them, at any time. `mistral.rs` is shown; `mixtral.rs`, `starcoder2.rs`, `qwen2.rs` and
//! `gemma2.rs` make the same mask.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::mistral::{Config, Model};

const WIDTH: usize = 16;

fn main() -> Result<()> {
    let config = Config {
        vocab_size: WIDTH,
        hidden_size: WIDTH,
        intermediate_size: 1,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        sliding_window: Some(3),
        ..Config::config_7b_v0_1(false)
    };
    let map = VarMap::new();
    let mut model = Model::new(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    for (name, var) in map.data().lock().unwrap().iter() {
        let one_to_one = ["embed_tokens.weight", "lm_head.weight", "v_proj.weight", "o_proj.weight"];
        var.set(&match name {
            name if one_to_one.iter().any(|end| name.ends_with(end)) => {
                Tensor::eye(WIDTH, DType::F32, &Device::Cpu)?
            }
            name if name.ends_with("norm.weight") => var.ones_like()?,
            // Without queries and keys, attention is the mean of what is seen.
            _ => var.zeros_like()?,
        })?;
    }
    let mut seen = |tokens: Tensor, before: usize| -> Result<Vec<usize>> {
        let logits = model.forward(&tokens.unsqueeze(0)?, before)?.flatten_all()?.to_vec1::<f32>()?;
        Ok((0..WIDTH).filter(|token| logits[*token] > 0.1).collect())
    };
    println!(
        "token 7 of a prompt sees {:?}; it should see [5, 6, 7]",
        seen(Tensor::arange(0u32, 8, &Device::Cpu)?, 0)?
    );
    println!(
        "token 8, alone, sees {:?}; it should see [6, 7, 8]",
        seen(Tensor::new(&[8u32], &Device::Cpu)?, 8)?
    );
    Ok(())
}
