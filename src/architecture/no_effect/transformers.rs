//! Settings without effect of the model types that candle-transformers computes.

use super::OfTypes;

/// Settings of model types. A setting may be in several rows, of which the first counts.
pub(super) const OF_TYPES: &[OfTypes] = &[
    (
        &["gpt_bigcode"],
        &[
            // How the reference implementation computes the same.
            ("attention_softmax_in_fp32", "*"),
            ("scale_attention_softmax_in_fp32", "*"),
            ("inference_runner", "*"),
            ("validate_runner_input", "*"),
            ("max_batch_size", "*"),
            ("max_sequence_length", "*"),
            ("pad_key_length", "*"),
            ("pre_allocate_kv_cache", "*"),
        ],
    ),
    (
        &["granitemoehybrid"],
        &[
            // Of layers that a model which is read has none of.
            ("mamba_*", "*"),
            ("num_experts_per_tok", "*"),
            ("normalization_function", "\"rmsnorm\""),
        ],
    ),
    (
        &["lfm2"],
        &[
            // Second names of settings, and what the weights were drawn from.
            ("block_dim", "*"),
            ("block_norm_eps", "*"),
            ("block_mlp_init_scale", "*"),
            ("block_out_init_scale", "*"),
            ("block_use_xavier_init", "*"),
            ("block_use_swiglu", "true"),
            ("conv_dim*", "*"),
            ("conv_use_xavier_init", "*"),
            ("num_heads", "*"),
            ("use_pos_enc", "true"),
        ],
    ),
    (
        &["mamba", "mamba2"],
        &[
            // Names that the settings had before, and how the weights were drawn and are trained.
            ("d_model", "*"),
            ("d_inner", "*"),
            ("n_layer", "*"),
            ("ssm_cfg", "*"),
            ("pad_vocab_size_multiple", "*"),
            ("rescale_prenorm_residual", "*"),
            ("residual_in_fp32", "*"),
            ("rms_norm", "true"),
            // No bound, which Python writes as infinity.
            ("time_step_limit", "[0.0, 1.7976931348623157e308]"),
            // The rank is compared with the one that follows from the width.
            ("time_step_*", "*"),
            ("use_mambapy", "*"),
            ("chunk_size", "*"),
            // Compared with the one that follows from the width.
            ("num_heads", "*"),
            ("intermediate_size", "*"),
        ],
    ),
    (
        &["chatglm"],
        &[
            // Other names and forms of settings that are read.
            ("num_hidden_layers", "*"),
            ("vocab_size", "*"),
            ("apply_query_key_layer_scaling", "*"),
            ("attention_softmax_in_fp32", "*"),
            ("bias_dropout_fusion", "*"),
            ("fp32_residual_connection", "*"),
        ],
    ),
    (
        &["chinese_clip", "chinese_clip_text_model", "chinese_clip_vision_model"],
        &[
            // Files have the settings a second time, which count.
            ("vision_config", "*"),
            ("text_config", "*"),
            // The model's own counts, and each tower has one too.
            ("projection_dim", "*"),
            // Of the pooling layer that the texts' encoder was trained with, and of outputs.
            ("pooler_*", "*"),
            ("directionality", "*"),
            ("position_embedding_type", "\"absolute\""),
        ],
    ),
    // A second name, and settings of training.
    (&["starcoder2"], &[("layer_norm_epsilon", "*")]),
    (&["deepseek_v2"], &[("aux_loss_alpha", "*"), ("seq_aux", "*"), ("ep_size", "*")]),
    (&["recurrent_gemma"], &[("final_w_init_variance_scale", "*"), ("w_init_variance_scale", "*")]),
];
