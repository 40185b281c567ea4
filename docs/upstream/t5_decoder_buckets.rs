//! T5's decoder looks relative positions up in the encoder's buckets, half of which are for tokens that come later. With
//! one head whose bias is high in bucket 12 alone, the 21st token sees the one 12 before it in the reference
//! (`_relative_position_bucket` with `bidirectional=False`), and nothing in particular here.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::t5::{Config, T5ForConditionalGeneration};

const WIDTH: usize = 24;

fn main() -> Result<()> {
    let config = Config {
        vocab_size: WIDTH,
        d_model: WIDTH,
        d_kv: WIDTH,
        d_ff: 1,
        num_layers: 1,
        num_heads: 1,
        tie_word_embeddings: false,
        ..Config::default()
    };
    let map = VarMap::new();
    let mut model =
        T5ForConditionalGeneration::load(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu), &config)?;
    for (name, var) in map.data().lock().unwrap().iter() {
        let one_to_one =
            ["embed_tokens.weight", "lm_head.weight", "SelfAttention.v.weight", "SelfAttention.o.weight"];
        var.set(&match name {
            name if one_to_one.iter().any(|end| name.ends_with(end)) => {
                Tensor::eye(WIDTH, DType::F32, &Device::Cpu)?
            }
            name if name.ends_with("layer_norm.weight") => var.ones_like()?,
            name if name == "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" => {
                let bias: Vec<f32> = (0..32).map(|bucket| if bucket == 12 { 30.0 } else { 0.0 }).collect();
                Tensor::from_vec(bias, (32, 1), &Device::Cpu)?
            }
            _ => var.zeros_like()?,
        })?;
    }
    let tokens = Tensor::arange(0u32, 21, &Device::Cpu)?.unsqueeze(0)?;
    let logits = model.forward(&tokens, &tokens)?.flatten_all()?.to_vec1::<f32>()?;
    println!("logits of the 20 tokens before the last; the one of number 8 should stand out:");
    println!("{:.2?}", &logits[..20]);
    Ok(())
}
