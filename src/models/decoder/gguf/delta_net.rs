//! Gated delta nets by the metadata of a GGUF file: those of Qwen3-Next and Qwen3.5, whose other layers have attention with
//! output gates. Norms have their factors whole.

use super::metadata::Metadata;
use crate::error::Result;
use crate::kernels::delta_net::{DeltaNetSizes, ValueOrder};
use crate::models::decoder::config::DecoderConfig;
use crate::models::decoder::names::DecoderNames;
use crate::models::transformer::{
    DeltaNetForm, DeltaNetInputs, DeltaNetNames, HeadNorms, MixerConfig, Names, OutputGate,
};

/// Qwen3-Next's names; older files have the projections of each key head together.
pub(super) const QWEN3_NEXT: DecoderNames = DecoderNames {
    blocks: Names {
        feed_forward_norm: "post_attention_norm",
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::GroupedGates { qkv: "attn_qkv", z: "attn_gate", ba: "ssm_ba" },
            form: DeltaNetForm::Gguf,
            convolution: "ssm_conv1d",
            log_rates: "ssm_a",
            decay_bias: "ssm_dt.bias",
            norm: "ssm_norm",
            out_proj: "ssm_out",
        },
        ..super::EXPERTS.blocks
    },
    ..super::EXPERTS
};
pub(super) const OLD_QWEN3_NEXT: DecoderNames = DecoderNames {
    blocks: Names {
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::Grouped { qkvz: "ssm_in", ba: "ssm_ba" },
            ..QWEN3_NEXT.blocks.delta_net
        },
        ..QWEN3_NEXT.blocks
    },
    ..QWEN3_NEXT
};
/// Qwen3.5's, with experts and without.
pub(super) const QWEN3_5_MOE: DecoderNames = DecoderNames {
    blocks: Names {
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::Separate {
                qkv: "attn_qkv",
                z: "attn_gate",
                b: "ssm_beta",
                a: "ssm_alpha",
            },
            ..QWEN3_NEXT.blocks.delta_net
        },
        ..QWEN3_NEXT.blocks
    },
    ..QWEN3_NEXT
};
pub(super) const QWEN3_5: DecoderNames = DecoderNames {
    blocks: Names {
        feed_forward_norm: "post_attention_norm",
        delta_net: QWEN3_5_MOE.blocks.delta_net,
        ..super::NAMES.blocks
    },
    ..super::NAMES
};

impl Metadata<'_> {
    /// Puts gated delta nets into the layers that have them, and gates into the others.
    pub(super) fn delta_nets(&self, config: &mut DecoderConfig, order: ValueOrder) -> Result<()> {
        // Layers that predict several tokens at a time are counted among the others.
        self.only("nextn_predict_layers", &[0])?;
        let value_heads = self.required("ssm.time_step_rank")?;
        let net = MixerConfig::DeltaNet(DeltaNetSizes {
            key_heads: self.required("ssm.group_count")?,
            value_heads,
            order,
            key_size: self.required("ssm.state_size")?,
            value_size: self.required("ssm.inner_size")?.checked_div(value_heads).unwrap_or(0),
            taps: self.required("ssm.conv_kernel")?,
        });
        let interval = self.optional("full_attention_interval")?.unwrap_or(4).max(1);
        let listed = self.of_layers("attention.recurrent_layers")?;
        let has_net = |layer: usize| match &listed {
            Some(flags) => flags.get(layer).is_some_and(|flag| *flag != 0),
            None => !(layer + 1).is_multiple_of(interval),
        };
        let transformer = &mut config.transformer;
        transformer.attention.head_norms = HeadNorms::EachHead;
        transformer.attention.output_gate = OutputGate::EachHead;
        for (index, layer) in transformer.layers.iter_mut().enumerate() {
            if has_net(index) {
                (layer.mixer, layer.rope) = (net, None);
            }
        }
        Ok(())
    }
}
