//! `gemma4/text.rs` adds 1 to the weights of its norms, as Gemma 1 to 3 do. Gemma 4 has weights around 1 and adds nothing
//! (`Gemma4RMSNorm`), so a norm with weights of 1 should give vectors of the mean square 1.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::gemma4::config::Gemma4TextConfig;
use candle_transformers::models::gemma4::text::TextModel;

const WIDTH: usize = 16;

fn main() -> Result<()> {
    let config = format!(
        r#"{{"hidden_size": {WIDTH}, "intermediate_size": 32, "num_hidden_layers": 0, "vocab_size": {WIDTH},
            "sliding_window": 8, "layer_types": [], "tie_word_embeddings": false, "final_logit_softcapping": null}}"#
    );
    let config: Gemma4TextConfig = serde_json::from_str(&config).unwrap();
    let map = VarMap::new();
    let mut model = TextModel::new(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    for (name, var) in map.data().lock().unwrap().iter() {
        match name.as_str() {
            "lm_head.weight" => var.set(&Tensor::eye(WIDTH, DType::F32, &Device::Cpu)?)?,
            "model.norm.weight" => var.set(&var.ones_like()?)?,
            _ => {}
        }
    }
    // Without layers and with a head that changes nothing, logits are what the last norm gives.
    let normed = model.forward(&Tensor::new(&[[3u32]], &Device::Cpu)?, 0)?;
    println!(
        "mean square behind the last norm: {}; it should be 1",
        normed.sqr()?.mean_all()?.to_scalar::<f32>()?
    );
    Ok(())
}
