//! `paligemma.rs` divides an image's features by their length, so that the projector's weights may be ten times as large and
//! nothing changes. The reference hands the projector's output on as it is.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::paligemma::{Config, Model};

fn main() -> Result<()> {
    let config = r#"{
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_channels": 3, "image_size": 16, "patch_size": 8, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
            "num_key_value_heads": 1, "vocab_size": 20, "rope_theta": 10000, "head_dim": 8,
            "hidden_act": "gelu_pytorch_tanh", "attention_bias": false, "max_position_embeddings": 32,
            "rms_norm_eps": 1e-6},
        "projection_dim": 16
    }"#;
    let config: Config = serde_json::from_str(config).unwrap();
    let map = VarMap::new();
    let mut model = Model::new(&config, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    let image = Tensor::randn(0f32, 1.0, (1, 3, 16, 16), &Device::Cpu)?;
    let tokens = Tensor::new(&[[3u32, 5, 7]], &Device::Cpu)?;
    let before = model.setup(&image, &tokens)?;
    for (name, var) in map.data().lock().unwrap().iter() {
        if name.starts_with("multi_modal_projector") {
            var.set(&(var.as_tensor() * 10.0)?)?;
        }
    }
    let difference = (before - model.setup(&image, &tokens)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!(
        "largest difference of logits after the projector was made ten times as large: {difference:e}; it should be large"
    );
    Ok(())
}
