//! The text encoder of `openclip/text_model.rs` has no causal mask. That is right for MobileCLIP S1 and S2, which were trained
//! without one (`no_causal_mask`), and wrong for every other model of OpenCLIP: there a token sees none that come later.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::openclip::text_model::{Config, OpenClipTextTransformer};

fn main() -> Result<()> {
    let config = Config {
        vocab_size: 20,
        embed_dim: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        ..Config::vit_base_patch32()
    };
    let map = VarMap::new();
    let model =
        OpenClipTextTransformer::new(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu), &config)?;
    for var in map.all_vars() {
        var.set(&var.randn_like(0.0, 0.5)?)?;
    }
    let first = |last: u32| model.forward(&Tensor::new(&[[3u32, 5, last]], &Device::Cpu)?)?.i((0, 0));
    let difference = (first(7)? - first(11)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!(
        "largest difference of the first token's vector after the last token changed: {difference:.1e}; it should be 0"
    );
    Ok(())
}
