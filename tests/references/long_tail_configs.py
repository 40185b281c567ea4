"""Configurations of the tiny models that long_tail.py makes, with the keys that published repositories have.

Each is the published one, shrunk: `like` names the repository that it follows, `tokenizer` the family of decoders.py whose
tokenizer stands in for its own. The numbers of special tokens are filled in by long_tail.py. `native` is the same model as
transformers has it, where that reads the published form only with code of the repository's own; `longest` is the length of
the last prompt where it matters.
"""

ENDS = dict(bos_token_id=0, eos_token_id=0)
CONTEXT = 512
# Three layers, four heads, two of keys.
SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
COMMON = dict(initializer_range=0.02, use_cache=True, torch_dtype="float32")

GRANITE = dict(
    attention_bias=False, attention_dropout=0.1, attention_multiplier=0.2, embedding_multiplier=2.0, hidden_act="silu",
    logits_scaling=0.5, max_position_embeddings=CONTEXT, pad_token_id=0, residual_multiplier=0.6, rms_norm_eps=1e-05,
    rope_scaling=None, rope_theta=5000000.0, tie_word_embeddings=True, **ENDS, **COMMON)

FAMILIES = {
    # Scaled embeddings, attention, residuals and logits; one matrix for embedding and head.
    "granite": dict(like="ibm-granite/granite-3.1-2b-instruct", tokenizer="phi2", config=dict(
        SHAPE, architectures=["GraniteForCausalLM"], model_type="granite", mlp_bias=False, **GRANITE)),
    "olmo": dict(like="allenai/OLMo-1B-hf", tokenizer="phi2", config=dict(
        SHAPE, architectures=["OlmoForCausalLM"], model_type="olmo", attention_bias=False, attention_dropout=0.0,
        clip_qkv=None, eos_token_id=0, hidden_act="silu", max_position_embeddings=CONTEXT, num_key_value_heads=4,
        pad_token_id=1, pretraining_tp=1, rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=True, **COMMON)),
    # Queries, keys and values are clipped, and the head is a matrix of its own.
    "olmo_clip": dict(like="allenai/OLMo-7B-hf", tokenizer="phi2", config=dict(
        SHAPE, architectures=["OlmoForCausalLM"], model_type="olmo", attention_bias=False, attention_dropout=0.0,
        clip_qkv=1.5, eos_token_id=0, hidden_act="silu", max_position_embeddings=CONTEXT, num_hidden_layers=2,
        num_key_value_heads=4, pad_token_id=1, pretraining_tp=1, rope_scaling=None, rope_theta=10000.0,
        tie_word_embeddings=False, **COMMON)),
    "olmo2": dict(like="allenai/OLMo-2-0425-1B", tokenizer="phi2", config=dict(
        SHAPE, architectures=["Olmo2ForCausalLM"], model_type="olmo2", attention_bias=False, attention_dropout=0.0,
        eos_token_id=0, hidden_act="silu", max_position_embeddings=CONTEXT, pad_token_id=0, rms_norm_eps=1e-06,
        rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, **COMMON)),
    # The width of the feed-forward network is computed: two thirds of `block_ff_dim`, rounded up, as in LFM2-350M.
    "lfm2": dict(like="LiquidAI/LFM2-350M", tokenizer="llama", config=dict(
        architectures=["Lfm2ForCausalLM"], model_type="lfm2", block_auto_adjust_ff_dim=True, block_dim=32,
        block_ff_dim=208, block_ffn_dim_multiplier=1.0, block_mlp_init_scale=1.0, block_multiple_of=32,
        block_norm_eps=1e-05, block_out_init_scale=1.0, block_use_swiglu=True, block_use_xavier_init=True, conv_L_cache=3,
        conv_bias=False, conv_dim=32, conv_dim_out=32, conv_use_xavier_init=True, hidden_size=32,
        layer_types=["conv", "full_attention", "conv", "full_attention"], max_position_embeddings=CONTEXT, norm_eps=1e-05,
        num_attention_heads=4, num_heads=4, num_hidden_layers=4, num_key_value_heads=2, pad_token_id=0,
        rope_theta=1000000.0, tie_embedding=True, use_pos_enc=True, **ENDS, **COMMON)),
    # The window is as published, and longer than the texts.
    "starcoder2": dict(like="bigcode/starcoder2-3b", tokenizer="phi2", config=dict(
        SHAPE, architectures=["Starcoder2ForCausalLM"], model_type="starcoder2", attention_dropout=0.1,
        embedding_dropout=0.1, hidden_act="gelu_pytorch_tanh", layer_norm_epsilon=1e-05, max_position_embeddings=CONTEXT,
        mlp_type="default", norm_epsilon=1e-05, norm_type="layer_norm", residual_dropout=0.1,
        rope_theta=999999.4420358813, sliding_window=4096, use_bias=True, **ENDS, **COMMON)),
    "falcon": dict(like="tiiuae/falcon-7b", tokenizer="phi2", config=dict(
        architectures=["FalconForCausalLM"], model_type="falcon", alibi=False,
        apply_residual_connection_post_layernorm=False, attention_dropout=0.0, bias=False, hidden_dropout=0.0,
        hidden_size=32, layer_norm_epsilon=1e-05, multi_query=True, new_decoder_architecture=False, num_attention_heads=4,
        num_hidden_layers=3, parallel_attn=True, **ENDS, **COMMON)),
    "mamba": dict(like="state-spaces/mamba-130m-hf", tokenizer="phi2", config=dict(
        architectures=["MambaForCausalLM"], model_type="mamba", conv_kernel=4, d_inner=64, d_model=32, expand=2,
        fused_add_norm=True, hidden_act="silu", hidden_size=32, intermediate_size=64, layer_norm_epsilon=1e-05, n_layer=3,
        num_hidden_layers=3, pad_token_id=0, pad_vocab_size_multiple=8, rescale_prenorm_residual=False,
        residual_in_fp32=True, rms_norm=True, ssm_cfg={}, state_size=16, time_step_floor=0.0001,
        time_step_init_scheme="random", time_step_max=0.1, time_step_min=0.001, time_step_rank=2, time_step_scale=1.0,
        use_bias=False, use_conv_bias=True, **ENDS, **COMMON)),
    "mamba2": dict(like="AntonV/mamba2-130m-hf", tokenizer="phi2", config=dict(
        architectures=["Mamba2ForCausalLM"], model_type="mamba2", chunk_size=16, conv_kernel=4, expand=2, head_dim=16,
        hidden_act="silu", hidden_size=32, layer_norm_epsilon=1e-05, n_groups=1, num_heads=4, num_hidden_layers=3,
        pad_token_id=0, rescale_prenorm_residual=False, residual_in_fp32=True, rms_norm=True, state_size=16,
        tie_word_embeddings=True, time_step_floor=0.0001, time_step_max=0.1, time_step_min=0.001, time_step_rank=2,
        use_bias=False, use_conv_bias=True, **ENDS, **COMMON)),
    "helium": dict(like="kyutai/helium-1-preview-2b", tokenizer="mistral", config=dict(
        SHAPE, architectures=["HeliumForCausalLM"], model_type="helium", attention_bias=False, attention_dropout=0.0,
        head_dim=8, hidden_act="silu", max_position_embeddings=CONTEXT, mlp_bias=False, pad_token_id=0,
        rms_norm_eps=1e-08, rope_theta=100000.0, tie_word_embeddings=False, **ENDS, **COMMON)),
    # A text grows beyond the 512 tokens for which the library's cache has room at first.
    "glm4": dict(like="zai-org/GLM-4-9B-0414", tokenizer="phi2", longest=480, config=dict(
        SHAPE, architectures=["Glm4ForCausalLM"], model_type="glm4", attention_bias=True, attention_dropout=0.0,
        eos_token_id=[0], head_dim=16, hidden_act="silu", max_position_embeddings=1024, pad_token_id=0,
        partial_rotary_factor=0.5, rms_norm_eps=1e-05, rope_theta=10000.0, tie_word_embeddings=False, **COMMON)),
    "mixtral": dict(like="mistralai/Mixtral-8x7B-Instruct-v0.1", tokenizer="mistral", config=dict(
        SHAPE, architectures=["MixtralForCausalLM"], model_type="mixtral", attention_dropout=0.0, hidden_act="silu",
        intermediate_size=32, max_position_embeddings=CONTEXT, num_experts_per_tok=2, num_hidden_layers=2,
        num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05, rope_theta=1000000.0,
        router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False, **ENDS, **COMMON)),
    # Queries are not compressed, as in the light one, and YaRN lengthens the context.
    "deepseek_v2": dict(like="deepseek-ai/DeepSeek-V2-Lite-Chat", tokenizer="phi2", config=dict(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", attention_bias=False, attention_dropout=0.0,
        aux_loss_alpha=0.001, first_k_dense_replace=1, hidden_act="silu", hidden_size=32, intermediate_size=64,
        kv_lora_rank=16, max_position_embeddings=CONTEXT, moe_intermediate_size=24, moe_layer_freq=1, n_group=1,
        n_routed_experts=6, n_shared_experts=2, norm_topk_prob=False, num_attention_heads=4, num_experts_per_tok=3,
        num_hidden_layers=3, num_key_value_heads=4, pretraining_tp=1, q_lora_rank=None, qk_nope_head_dim=8,
        qk_rope_head_dim=8, rms_norm_eps=1e-06, rope_scaling=dict(
            beta_fast=32, beta_slow=1, factor=8, mscale=0.707, mscale_all_dim=0.707, original_max_position_embeddings=64,
            type="yarn"),
        rope_theta=10000, routed_scaling_factor=1.0, scoring_func="softmax", seq_aux=True, tie_word_embeddings=False,
        topk_group=1, topk_method="greedy", v_head_dim=8, **ENDS, **COMMON)),
    "stablelm": dict(like="stabilityai/stablelm-2-1_6b", tokenizer="phi2", config=dict(
        SHAPE, architectures=["StableLmForCausalLM"], model_type="stablelm", attention_dropout=0.0, hidden_act="silu",
        hidden_dropout=0.0, hidden_size=64, layer_norm_eps=1e-05, max_position_embeddings=CONTEXT, num_hidden_layers=2,
        num_key_value_heads=4, partial_rotary_factor=0.25, rope_theta=10000, tie_word_embeddings=False, use_qkv_bias=True,
        **ENDS, **COMMON)),
    "gpt_bigcode": dict(like="bigcode/starcoderbase-1b", tokenizer="phi2", config=dict(
        architectures=["GPTBigCodeForCausalLM"], model_type="gpt_bigcode", activation_function="gelu_pytorch_tanh",
        attention_softmax_in_fp32=True, attn_pdrop=0.1, embd_pdrop=0.1, inference_runner=0, layer_norm_epsilon=1e-05,
        max_batch_size=None, max_sequence_length=None, multi_query=True, n_embd=32, n_head=4, n_inner=128, n_layer=3,
        n_positions=CONTEXT, pad_key_length=True, pre_allocate_kv_cache=False, resid_pdrop=0.1,
        scale_attention_softmax_in_fp32=True, scale_attn_weights=True, validate_runner_input=True, **ENDS, **COMMON)),
    # The dense ones of Granite 4: attention in every layer, and no experts.
    "granitemoehybrid": dict(like="ibm-granite/granite-4.0-350m", tokenizer="phi2", config=dict(
        SHAPE, architectures=["GraniteMoeHybridForCausalLM"], model_type="granitemoehybrid", init_method="mup",
        layer_types=["attention"] * 3, mamba_chunk_size=256, mamba_conv_bias=True, mamba_d_conv=4, mamba_d_head=16,
        mamba_d_state=16, mamba_expand=2, mamba_n_groups=1, mamba_n_heads=4, mamba_proj_bias=False,
        normalization_function="rmsnorm", num_experts_per_tok=0, num_local_experts=0, output_router_logits=False,
        position_embedding_type="rope", router_aux_loss_coef=0.01, shared_intermediate_size=48, **GRANITE)),
    # The window is as published, and longer than the texts. Two recurrent layers to one of attention.
    "recurrent_gemma": dict(like="google/recurrentgemma-2b-it", tokenizer="gemma", config=dict(
        architectures=["RecurrentGemmaForCausalLM"], model_type="recurrent_gemma",
        _block_types=["recurrent", "recurrent", "attention"], attention_bias=False, attention_dropout=0.0,
        attention_window_size=2048, conv1d_width=4, embeddings_scale_by_sqrt_dim=True,
        final_w_init_variance_scale=0.07692307692307693, head_dim=16, hidden_activation="gelu_pytorch_tanh",
        hidden_size=64, intermediate_size=128, logits_soft_cap=30.0, lru_width=64, num_attention_heads=4,
        num_hidden_layers=3, num_key_value_heads=1, pad_token_id=0, partial_rotary_factor=0.5, rms_norm_eps=1e-06,
        rope_theta=10000.0, w_init_variance_scale=0.01, **ENDS, **COMMON)),
    # GLM-4 as it was first published, with code of its own: other keys and names than transformers' `glm`, of which it is
    # one. CodeGeeX4 has the same form.
    "chatglm": dict(like="THUDM/glm-4-9b-chat", tokenizer="phi2", config=dict(
        architectures=["ChatGLMModel"], model_type="chatglm", add_bias_linear=False, add_qkv_bias=True,
        apply_query_key_layer_scaling=True, apply_residual_connection_post_layernorm=False, attention_dropout=0.0,
        attention_softmax_in_fp32=True, bias_dropout_fusion=True, classifier_dropout=None, eos_token_id=[0],
        ffn_hidden_size=64, fp32_residual_connection=False, hidden_dropout=0.0, hidden_size=64, kv_channels=16,
        layernorm_epsilon=1.5625e-07, multi_query_attention=True, multi_query_group_num=2, num_attention_heads=4,
        num_hidden_layers=3, num_layers=3, original_rope=True, pad_token_id=0, padded_vocab_size=384,
        post_layer_norm=True, rmsnorm=True, rope_ratio=5, seq_length=CONTEXT, tie_word_embeddings=False,
        torch_dtype="float32", use_cache=True),
        native=dict(
            SHAPE, model_type="glm", hidden_size=64, attention_bias=True, eos_token_id=[0], head_dim=16, hidden_act="silu",
            max_position_embeddings=CONTEXT, pad_token_id=0, partial_rotary_factor=0.5, rms_norm_eps=1.5625e-07,
            rope_theta=50000.0, tie_word_embeddings=False)),
}
