//! Settings that have no effect on what a model computes, as data: those of every model, and those of one model type. What
//! is in no table, is not read, and is neither null, false nor empty, is refused.

mod transformers;

/// A setting, and the value at which it has no effect in JSON; or `*` for one that never has any. A name that begins or
/// ends with a `*` stands for all with that end or beginning, and one with both for all that hold the rest.
type Row = (&'static str, &'static str);
/// Model types, and their settings.
type OfTypes = (&'static [&'static str], &'static [Row]);

/// True for settings of which no model reads any.
pub(super) fn is_never_read(name: &str) -> bool {
    EVERYWHERE.iter().any(|(pattern, value)| *value == "*" && matches(pattern, name))
}

/// The value at which a setting, which nothing reads, has no effect in a table of settings of this model type.
pub(super) fn harmless_value(kind: &str, name: &str) -> Option<&'static str> {
    let own = OF_TYPES
        .iter()
        .chain(transformers::OF_TYPES)
        .filter(|(types, _)| types.contains(&kind))
        .flat_map(|(_, rows)| *rows);
    own.chain(EVERYWHERE).find(|(pattern, _)| matches(pattern, name)).map(|(_, value)| *value)
}

pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(rest), Some(_)) => name.contains(rest.trim_end_matches('*')),
        (Some(end), None) => name.ends_with(end),
        (None, Some(beginning)) => name.starts_with(beginning),
        (None, None) => name == pattern,
    }
}

/// Settings of all models.
const EVERYWHERE: &[Row] = &[
    // What made the file, and for whom.
    ("_*", "*"),
    ("architectures", "*"),
    ("model_type", "*"),
    ("auto_map", "*"),
    ("transformers_version", "*"),
    ("transformers.js_config", "*"),
    ("sentence_transformers", "*"),
    ("unsloth_*", "*"),
    ("name_or_path", "*"),
    ("custom_pipelines", "*"),
    ("tokenizer_class", "*"),
    ("processor_class", "*"),
    // The type of the file's numbers, which the file says itself.
    ("torch_dtype", "*"),
    ("dtype", "*"),
    ("use_bfloat16", "*"),
    // The reader of weights takes or refuses it.
    ("quantization_config", "*"),
    ("compression_config", "*"),
    // Tokens and defaults of generation, which the capabilities read where they have a use for them.
    ("*_token_id", "*"),
    ("*_token_ids", "*"),
    ("*_token_index", "*"),
    ("forced_*", "*"),
    ("suppress_tokens", "*"),
    ("begin_suppress_tokens", "*"),
    ("bad_words_ids", "*"),
    ("prefix", "*"),
    ("max_length", "*"),
    ("min_length", "*"),
    ("max_new_tokens", "*"),
    ("do_sample", "*"),
    ("early_stopping", "*"),
    ("num_beams", "*"),
    ("num_beam_groups", "*"),
    ("num_return_sequences", "*"),
    ("diversity_penalty", "*"),
    ("repetition_penalty", "*"),
    ("length_penalty", "*"),
    ("exponential_decay_length_penalty", "*"),
    ("*no_repeat_ngram_size", "*"),
    ("temperature", "*"),
    ("top_k", "*"),
    ("top_p", "*"),
    ("typical_p", "*"),
    ("remove_invalid_values", "*"),
    ("model_max_length", "*"),
    ("matryoshka_dimensions", "*"),
    // Of training, in the files of OpenCLIP.
    ("patch_dropout", "*"),
    ("timm_drop*", "*"),
    ("timm_model_pretrained", "*"),
    // Of images that are padded, which are refused.
    ("fill_color", "*"),
    // Outputs that nobody asks for here.
    ("output_*", "*"),
    ("return_dict*", "*"),
    ("use_return_dict", "*"),
    // Heads of other tasks. Reranking reads what it needs of them.
    ("sbert_ce_default_activation_function", "*"),
    ("classifier_*", "*"),
    ("id2label", "*"),
    ("label2id", "*"),
    ("num_labels", "*"),
    ("problem_type", "*"),
    ("finetuning_task", "*"),
    ("task_specific_params", "*"),
    ("summary_*", "*"),
    // Training.
    ("*dropout*", "*"),
    ("*_pdrop", "*"),
    ("*drop_path*", "*"),
    ("initializer_*", "*"),
    ("init_*", "*"),
    ("gradient_checkpointing*", "*"),
    ("router_aux_loss_coef", "*"),
    ("pretraining_tp", "*"),
    ("logit_scale_init_value", "*"),
    // How the reference implementation computes the same.
    ("use_cache", "*"),
    ("cache_implementation", "*"),
    ("attn_implementation", "*"),
    ("chunk_size_feed_forward", "*"),
    ("torchscript", "*"),
    ("tf_legacy_loss", "*"),
    ("use_flash_att*", "*"),
    ("use_memory_efficient_attention", "*"),
    ("unpad_inputs", "*"),
    ("fused_*", "*"),
    // The files themselves say whether there is a head of its own.
    ("tie_word_embeddings", "*"),
    ("tie_encoder_decoder", "*"),
    // These would change what is computed.
    ("is_causal", "true"),
    ("is_decoder", "false"),
    ("is_encoder_decoder", "false"),
    ("add_cross_attention", "false"),
];

/// Types of encoders like BERT.
const ENCODERS: &[&str] =
    &["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "new", "electra", "mpnet"];
/// Types of decoders.
const DECODERS: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "jina_embeddings_v5",
    "phi",
    "phi3",
    "phimoe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma3n_text",
    "gpt_oss",
    "bidir_mistral",
    "ministral",
    "ministral3",
    "mistral3",
    "qwen2_moe",
    "smollm3",
];
/// Types of models that see images, and of their parts.
const WITH_IMAGES: &[&str] = &[
    "clip",
    "clip_text_model",
    "clip_vision_model",
    "siglip",
    "siglip_text_model",
    "siglip_vision_model",
    "siglip2",
    "siglip2_text_model",
    "siglip2_vision_model",
    "llava",
    "llava_next",
    "llava_onevision",
    "blip",
    "blip_text_model",
    "blip_vision_model",
    "gemma3",
];

/// Settings of model types. A setting may be in several rows, of which the first counts.
const OF_TYPES: &[OfTypes] = &[
    (
        ENCODERS,
        &[
            // Of the pooling layer that BERT was trained with.
            ("pooler_*", "*"),
            ("emb_pooler", "*"),
            // A second name of the width, which the shape of the tensor has to agree with.
            ("emb_size", "*"),
            ("directionality", "*"),
            // The file has the positions, however they were made.
            ("sinusoidal_pos_embds", "*"),
            ("tie_weights_", "*"),
        ],
    ),
    // Jina's variant of BERT has an activation of its own.
    (&["bert"], &[("hidden_act", "*")]),
    (
        &["nvembed", "latent_attention"],
        &[
            ("hidden_size", "*"),
            ("hidden_dim", "*"),
            ("padding_side", "*"),
            ("add_pad_token", "*"),
            ("is_mask_instruction", "true"),
            ("mask_type", "\"b\""),
        ],
    ),
    (
        &["nomic_bert"],
        &[
            ("scale_attn_weights", "true"),
            ("reorder_and_upcast_attn", "*"),
            ("pad_vocab_size_multiple", "*"),
            ("dense_seq_output", "*"),
            ("use_xentropy", "*"),
            // Of the mixture of experts in training, and how it is computed there.
            ("moe_impl", "*"),
            ("ffn_div", "1"),
        ],
    ),
    (
        &["modernbert"],
        &[
            ("decoder_bias", "*"),
            // `norm_eps` counts.
            ("layer_norm_eps", "*"),
            ("position_embedding_type", "*"),
            ("deterministic_flash_attn", "*"),
            ("reference_compile", "*"),
            ("repad_logits_with_grad", "*"),
            ("sparse_pred*", "*"),
        ],
    ),
    (
        DECODERS,
        &[
            ("max_sequence_length", "*"),
            ("is_llama_config", "*"),
            // vLLM's alone, for texts beyond the context.
            ("dual_chunk_attention_config", "*"),
            // Of DeepSeek's Qwen3; the reference implementation reads `attention_factor` alone.
            ("attn_factor", "*"),
            // Of the fine-tunes for YaRN, in `rope_scaling`.
            ("finetuned", "*"),
            // Of Gemma 2, where `sliding_window` counts.
            ("sliding_window_size", "*"),
            // Of Phi-4-mini.
            ("full_attn_mod", "1"),
            ("interpolate_factor", "1"),
        ],
    ),
    // An older name of a setting of its classifiers. What a token sees is everything, whatever the file says.
    (&["eurobert"], &[("clf_pooling", "*"), ("is_causal", "*")]),
    // Words for tokens, which the tokenizer has.
    (
        &["eurobert", "jina_embeddings_v5"],
        &[("bos_token", "*"), ("eos_token", "*"), ("pad_token", "*"), ("mask_token", "*")],
    ),
    // Of training.
    (&["phimoe"], &[("input_jitter_noise", "*")]),
    // Second names of settings, which the reference implementation does not read.
    (&["gpt_oss"], &[("experts_per_token", "*"), ("initial_context_length", "*")]),
    // Of the code that the repository brings, which is Qwen3's with adapters.
    (&["jina_embeddings_v5"], &[("task_names", "*")]),
    // Of the adapters' training.
    (&["xlm-roberta"], &[("lora_main_params_trainable", "*"), ("load_trained_adapters", "true")]),
    // Of the adapters' code, which the base model does without.
    (&["jina_embeddings_v3"], &[("pooler_*", "*"), ("position_embedding_type", "*")]),
    // Of layers that predict several tokens at a time, and of states of fewer bits.
    (
        &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
        &[
            ("mtp_*", "*"),
            ("mamba_ssm_dtype", "*"),
            // Of the family, whatever the file says.
            ("attn_output_gate", "true"),
            ("output_gate_type", "\"swish\""),
        ],
    ),
    (&["qwen3_5", "qwen3_5_moe"], &[("vision_config", "*"), ("language_model_only", "*")]),
    // Of the family, whatever the file says.
    (&["qwen3_5_moe_text"], &[("norm_topk_prob", "true"), ("decoder_sparse_step", "1")]),
    // Of training.
    (&["gemma3n", "gemma3n_text"], &[("altup_coef_clip", "*"), ("altup_lr_multiplier", "*")]),
    (&["gemma3n"], &[("vision_config", "*"), ("audio_config", "*"), ("*_soft_tokens_per_image", "*")]),
    // The text half is read alone.
    (&["gemma3"], &[("vision_config", "*"), ("mm_tokens_per_image", "*")]),
    (
        &["mistral3"],
        &[
            ("vision_config", "*"),
            ("vision_feature_layer", "*"),
            ("projector_hidden_act", "*"),
            ("multimodal_projector_bias", "*"),
            ("spatial_merge_size", "*"),
        ],
    ),
    // Those of a picture are of the preprocessing, and there are no words in the tower.
    (&["pixtral"], &[("image_size", "*"), ("is_composition", "*"), ("vocab_size", "*")]),
    (&["mistral"], &[("is_composition", "*")]),
    // The reference implementation writes it among the rotary settings a second time.
    (&["ministral3"], &[("max_position_embeddings", "*")]),
    (
        WITH_IMAGES,
        &[
            ("projection_dim", "*"),
            ("vocab_size", "*"),
            ("image_seq_length", "*"),
            ("ignore_index", "*"),
            ("use_image_newline_parameter", "true"),
            ("vision_use_head", "true"),
            ("image_text_hidden_size", "*"),
            ("encoder_hidden_size", "*"),
            ("label_smoothing", "*"),
        ],
    ),
    // Old files of CLIP have the same settings a second time, which count.
    (&["clip"], &[("vision_config", "*"), ("text_config", "*")]),
    (&["blip", "blip_text_model"], &[("is_decoder", "true")]),
    // The reference implementation interleaves whatever the file says.
    (
        &["qwen3_vl", "qwen3_vl_text", "qwen3_vl_moe", "qwen3_vl_moe_text"],
        &[("mrope_interleaved", "true"), ("norm_topk_prob", "true")],
    ),
    // Of other models that the classes of the tower and the text were written for, and of the training.
    (
        &["idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision"],
        &[
            ("vocab_size", "*"),
            ("image_seq_len", "*"),
            ("max_image_size", "*"),
            ("size", "*"),
            ("freeze_*", "*"),
        ],
    ),
    (&["llama"], &[("perceiver_config", "*"), ("pixel_shuffle_factor", "*"), ("neftune_noise_alpha", "*")]),
    (
        &["blip-2", "blip_2_qformer"],
        &[
            ("image_text_hidden_size", "*"),
            ("vocab_size", "*"),
            ("max_position_embeddings", "*"),
            ("position_embedding_type", "\"absolute\""),
            // The model type of the text half says it.
            ("use_decoder_only_language_model", "*"),
        ],
    ),
    (&["blip_2_vision_model"], &[("projection_dim", "*")]),
    (&["opt"], &[("layerdrop", "*")]),
    // Of videos.
    (&["qwen2_5_vl", "qwen2_5_vl_vision"], &[("tokens_per_second", "*")]),
    (
        &["moondream1"],
        &[
            // Of what points at places and draws boxes.
            ("region", "*"),
            ("detect", "*"),
            ("point", "*"),
            // Of captions of other lengths, and of answers that think.
            ("short", "*"),
            ("long", "*"),
            ("*_id", "*"),
        ],
    ),
    (
        &["dinov2", "dinov2_with_registers"],
        &[
            // The reference implementation resizes the positions in one way, whatever these say.
            ("interpolate_antialias", "*"),
            ("interpolate_offset", "*"),
            ("layerscale_value", "*"),
            ("apply_layernorm", "*"),
            ("reshape_hidden_states", "*"),
            ("use_mask_token", "*"),
            ("stage_names", "*"),
            ("out_features", "*"),
            ("out_indices", "*"),
        ],
    ),
    (
        &["dinov3_vit"],
        &[
            // Its positions follow from the image, and are moved in training alone.
            ("image_size", "*"),
            ("pos_embed_*", "*"),
            ("layerscale_value", "*"),
            ("apply_layernorm", "*"),
            ("reshape_hidden_states", "*"),
            ("return_class_token", "*"),
            ("stage_names", "*"),
            ("out_features", "*"),
            ("out_indices", "*"),
        ],
    ),
    (
        &["t5"],
        &[
            // Where the encoder is read alone.
            ("is_encoder_decoder", "*"),
            ("num_decoder_layers", "*"),
            ("scale_decoder_outputs", "*"),
            // `feed_forward_proj` counts.
            ("dense_act_fn", "*"),
            ("is_gated_act", "*"),
            ("n_positions", "*"),
        ],
    ),
    (
        &[
            "PNDMScheduler",
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "LCMScheduler",
        ],
        &[
            // Of `thresholding`, which is refused.
            ("dynamic_thresholding_ratio", "*"),
            ("sample_max_value", "*"),
            // Of `use_flow_sigmas`, which is refused.
            ("flow_shift", "*"),
            ("time_shift_type", "*"),
        ],
    ),
    (&["UNet2DConditionModel"], &[("addition_embed_type_num_heads", "*"), ("upcast_attention", "*")]),
    (
        &["AutoencoderKL"],
        &[
            // Of the encoder, which is not read.
            ("in_channels", "*"),
            ("down_block_types", "*"),
            ("use_quant_conv", "*"),
            ("sample_size", "*"),
            ("force_upcast", "*"),
        ],
    ),
    (
        &["AutoencoderTiny"],
        &[
            // Of the encoder where it is not read: that of previews, or none.
            ("in_channels", "*"),
            ("encoder_block_out_channels", "*"),
            ("num_encoder_blocks", "*"),
            // Of latents kept as bytes.
            ("latent_magnitude", "*"),
            ("latent_shift", "*"),
            // A second name of the decoder's widths.
            ("block_out_channels", "*"),
            ("force_upcast", "*"),
        ],
    ),
];
