//! Tensor names of decoders in safetensors, as data.

use crate::models::transformer::{
    DeltaNetForm, DeltaNetInputs, DeltaNetNames, ExpertNames, MatrixOrder, Names, QkvNames, StreamNames,
    UpNames,
};

/// Names of a decoder's tensors, without `.weight` and `.bias`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderNames {
    /// Beginnings of all names but the heads', where the decoder was saved as a part of a larger model; the
    /// first that has token embeddings counts.
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) token_embeddings: &'static str,
    /// Table of the inputs that blocks have of their own for each token.
    pub(crate) block_inputs: &'static str,
    /// Learned positions, and the norm of their sum with token embeddings.
    pub(crate) positions: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) blocks: Names,
    /// The norm before the head.
    pub(crate) norm: &'static str,
    /// The layer before that norm, in a head that has one.
    pub(crate) transform: &'static str,
    /// The matrix that makes logits, without prefix; the first that is there counts.
    pub(crate) heads: &'static [&'static str],
    /// The name of the bias of logits beside such a layer, where the head's matrix has none of its own.
    pub(crate) logit_bias: &'static str,
    /// Beginnings of the names of tensors that no token's vector or logit depends on.
    pub(crate) no_effect: &'static [&'static str],
}

/// Llama's names, which most families share.
pub(super) const LLAMA: DecoderNames = DecoderNames {
    prefixes: &[
        "model.",
        "",
        "language_model.model.",
        "model.language_model.",
        "language_model.",
        "embedding_model.",
        "model.text_model.",
    ],
    token_embeddings: "embed_tokens",
    block_inputs: "",
    positions: "",
    embedding_norm: "",
    blocks: Names {
        blocks: "layers.",
        attention_norm: "input_layernorm",
        qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        out_proj: "self_attn.o_proj",
        feed_forward_norm: "post_attention_layernorm",
        feed_forward: "mlp.",
        up: UpNames::Separate { gate: "gate_proj", up: "up_proj" },
        down: "down_proj",
        router: "mlp.gate",
        experts: ExpertNames::Numbered("mlp.experts."),
        shared_expert: "mlp.shared_expert.",
        shared_gate: "mlp.shared_expert_gate",
        ..Names::NONE
    },
    norm: "norm",
    transform: "",
    heads: &["lm_head", "language_model.lm_head", "model.lm_head"],
    logit_bias: "",
    // Layers that predict several tokens at a time.
    no_effect: &["mtp.", "model.mtp."],
};

/// Gemma's: Llama's with norms after attention and feed-forward network.
pub(super) const GEMMA: DecoderNames = DecoderNames {
    blocks: Names {
        attention_output_norm: "post_attention_layernorm",
        feed_forward_norm: "pre_feedforward_layernorm",
        feed_forward_output_norm: "post_feedforward_layernorm",
        ..LLAMA.blocks
    },
    ..LLAMA
};

/// Gemma 3n's: Gemma's with those of several residual streams.
pub(super) const GEMMA3N: DecoderNames = DecoderNames {
    block_inputs: "embed_tokens_per_layer",
    blocks: Names {
        streams: StreamNames {
            embed: "altup_projections.",
            unembed: "altup_unembed_projections.",
            inputs: "per_layer_model_projection",
            inputs_norm: "per_layer_projection_norm",
            router_norm: "altup.router_norm",
            router: "altup.modality_router",
            prediction: "altup.prediction_coefs",
            correction: "altup.correction_coefs",
            output_scale: "altup.correct_output_scale",
            laurel_down: "laurel.linear_left",
            laurel_up: "laurel.linear_right",
            laurel_norm: "laurel.post_laurel_norm",
            gate: "per_layer_input_gate",
            projection: "per_layer_projection",
            norm: "post_per_layer_input_norm",
        },
        ..GEMMA.blocks
    },
    ..GEMMA
};

/// GPT-OSS's: Llama's with the experts' matrices in one tensor for each place.
pub(super) const GPT_OSS: DecoderNames = DecoderNames {
    blocks: Names {
        sinks: "self_attn.sinks",
        router: "mlp.router",
        experts: ExpertNames::Stacked {
            up: UpNames::Interleaved("mlp.experts.gate_up_proj"),
            up_order: MatrixOrder::Inputs,
            down: "mlp.experts.down_proj",
            down_order: MatrixOrder::Inputs,
            bias: "",
        },
        ..LLAMA.blocks
    },
    ..LLAMA
};

/// Those of the text half of Qwen3-VL with experts: Llama's with the experts' matrices in one tensor for each place.
pub(crate) const QWEN3_VL_MOE: DecoderNames = DecoderNames {
    blocks: Names {
        experts: ExpertNames::Stacked {
            up: UpNames::GateUp("mlp.experts.gate_up_proj"),
            up_order: MatrixOrder::Inputs,
            down: "mlp.experts.down_proj",
            down_order: MatrixOrder::Inputs,
            bias: "",
        },
        ..LLAMA.blocks
    },
    ..LLAMA
};

/// Qwen3-Next's: Llama's with those of gated delta nets.
pub(super) const QWEN3_NEXT: DecoderNames = DecoderNames {
    blocks: Names {
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::Grouped {
                qkvz: "linear_attn.in_proj_qkvz",
                ba: "linear_attn.in_proj_ba",
            },
            form: DeltaNetForm::Transformers,
            convolution: "linear_attn.conv1d",
            log_rates: "linear_attn.A_log",
            decay_bias: "linear_attn.dt_bias",
            norm: "linear_attn.norm",
            out_proj: "linear_attn.out_proj",
        },
        ..LLAMA.blocks
    },
    ..LLAMA
};

/// Qwen3.5's: Qwen3-Next's with a tensor for each projection into a gated delta net, or each three.
pub(super) const QWEN3_5: DecoderNames = DecoderNames {
    blocks: Names {
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::Separate {
                qkv: "linear_attn.in_proj_qkv",
                z: "linear_attn.in_proj_z",
                b: "linear_attn.in_proj_b",
                a: "linear_attn.in_proj_a",
            },
            ..QWEN3_NEXT.blocks.delta_net
        },
        ..QWEN3_NEXT.blocks
    },
    ..QWEN3_NEXT
};

/// Those of Qwen3.5 with experts, whose matrices are published in one tensor for each place; transformers writes them one by
/// one.
pub(super) const QWEN3_5_MOE: DecoderNames = DecoderNames {
    blocks: Names {
        experts: ExpertNames::NumberedOrStacked {
            numbered: "mlp.experts.",
            gate_up: "mlp.experts.gate_up_proj",
            down: "mlp.experts.down_proj",
        },
        ..QWEN3_5.blocks
    },
    ..QWEN3_5
};

/// Phi-3.5-MoE's: Llama's with Mixtral's names of experts.
pub(super) const PHIMOE: DecoderNames = DecoderNames {
    blocks: Names {
        up: UpNames::Separate { gate: "w1", up: "w3" },
        down: "w2",
        router: "block_sparse_moe.gate",
        experts: ExpertNames::Numbered("block_sparse_moe.experts."),
        ..LLAMA.blocks
    },
    ..LLAMA
};

/// Phi's: Llama's with two projections in the feed-forward network.
pub(super) const PHI: DecoderNames = DecoderNames {
    blocks: Names { out_proj: "self_attn.dense", up: UpNames::Dense("fc1"), down: "fc2", ..LLAMA.blocks },
    norm: "final_layernorm",
    ..LLAMA
};

/// Phi-3's: Llama's with fused projections.
pub(super) const PHI3: DecoderNames = DecoderNames {
    blocks: Names {
        qkv: QkvNames::Fused("self_attn.qkv_proj"),
        up: UpNames::GateUp("gate_up_proj"),
        ..LLAMA.blocks
    },
    ..LLAMA
};
