"""What single model types need besides the usual sizes, and variants of one type that differ in what matters to an engine."""

from __future__ import annotations

from typing import Any

from breadth.sizes import THRESHOLD, WIDTH, WINDOW

_ROPE = {"rope_theta": 10000.0}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], **_ROPE}
_DEFAULT = {"rope_type": "default", **_ROPE}
_HYBRID = ["linear_attention", "full_attention"] * 2
_MIXED = ["sliding_attention", "full_attention"] * 2
_DOTS3 = {
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "num_key_value_heads": 4,
    "shared_experts_intermediate_size": 32,
    "use_dsa": False,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
_QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 4,
}

_DECODERS = (
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
)
"""Types whose networks see both ways unless they are told not to."""

CHANGES: dict[str, dict[str, Any]] = {
    **{kind: {"is_decoder": True} for kind in _DECODERS},
    "bailing_hybrid": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _DEFAULT}, "layer_types": _MIXED}
    },
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _DEFAULT}, "layer_types": _MIXED},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 2}},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 32, "adapter_merge_size": 2, "spatial_merge_size": 2, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": WIDTH},
    },
    "dots3_note_text": _DOTS3,
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [32, 16], "rope_parameters": {**_MROPE, "mrope_section": [3, 3, 2]}}},
    "falcon": {"num_kv_heads": None, "new_decoder_architecture": False, "multi_query": True, "alibi": False, "parallel_attn": True},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fun_asr_nano": {"adaptor_config": {"hidden_size": WIDTH, "intermediate_size": WIDTH // 4}},
    "glm46v": {"text_config": {"rope_parameters": _MROPE}},
    "glm4v": {"text_config": {"rope_parameters": _MROPE}},
    "glm4v_moe": {"text_config": {"rope_parameters": {**_MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0}},
    "glm_ocr": {"text_config": {"rope_parameters": _MROPE}},
    "glmga": {"text_config": {"rope_parameters": _MROPE}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "hunyuan_vl": {"text_config": {"rope_parameters": {"rope_type": "default", "xdrope_section": [2, 2, 2, 2], **_ROPE}}},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 16},
    "molmo2": {"vision_config": {"image_size": [56, 56]}, "adapter_config": {"text_hidden_size": WIDTH, "vision_feature_layer": [4, 2]}},
    "mpt": {"max_seq_len": 1024},
    "muse_spark": {"vision_config": {"num_hidden_layers": 4}, "audio_config": {"num_hidden_layers": 4}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "olmo_hybrid": {"layer_types": _HYBRID},
    "paddleocr_vl": {"text_config": {"rope_parameters": _MROPE}},
    "persimmon": {"num_key_value_heads": 4},
    "phi3": {"original_max_position_embeddings": 1024},
    "qwen2_5_omni_thinker": {"text_config": {"rope_parameters": _MROPE}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": _MROPE}},
    "qwen2_vl": {"text_config": {"rope_parameters": _MROPE}},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (32, 32), "axial_pos_shape": (64, 64), "num_buckets": 8},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False, "is_decoder": True},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "use_mem_rope": True,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Of each type, what is unlike its defaults made small."""
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": THRESHOLD,
    **_ROPE,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": THRESHOLD, **_ROPE}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, **_ROPE}
_TEMPERED = {**_YARN, "llama_4_scaling_beta": 0.1, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-encoder": ("bert", {"is_decoder": False}),
    "deepseek_v3-noqlora": ("deepseek_v3", {"q_lora_rank": None}),
    "exaone4-windows": ("exaone4", {"sliding_window_pattern": 2, "layer_types": _MIXED}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "gemma2-nocap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma3n_text-shared": ("gemma3n_text", {"num_kv_shared_layers": 2}),
    "gemma4_text-shared": ("gemma4_text", {"num_kv_shared_layers": 2}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granitemoehybrid-attention": ("granitemoehybrid", {"layer_types": ["attention"] * 4}),
    "lfm2-attention": ("lfm2", {"layer_types": ["full_attention"] * 4}),
    "lfm2-conv": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma4_text-wide": ("gemma4_text", {"global_head_dim": 32}),
    "gpt2-short": ("gpt2", {"n_positions": THRESHOLD}),
    "llama-dynamic": ("llama", {"max_position_embeddings": THRESHOLD, "rope_parameters": _DYNAMIC}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **_ROPE}}),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": THRESHOLD,
                **_ROPE,
            }
        },
    ),
    "llama-longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-unnormed": ("llama", {"tie_last_hidden_states": False}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama4_text-full": (
        "llama4_text",
        {"layer_types": ["full_attention"] * 4, "no_rope_layers": [0] * 4, "attn_temperature_tuning": True, "attn_scale": 0.5},
    ),
    "ministral3-tempered": ("ministral3", {"rope_parameters": _TEMPERED}),
    "mistral-nowindow": ("mistral", {"sliding_window": None}),
    "mixtral-nowindow": ("mixtral", {"sliding_window": None}),
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": THRESHOLD, "sliding_window": None, "rope_parameters": _LONGROPE}),
    "phimoe-longrope": ("phimoe", {"sliding_window": None, "rope_parameters": {**_LONGROPE, "short_mscale": 1.1, "long_mscale": 1.2}}),
    "phimoe-nowindow": ("phimoe", {"sliding_window": None}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe-window": ("qwen2_moe", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 4}),
    "qwen2_moe-60experts": ("qwen2_moe", {"num_experts": 60}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": {**_YARN, "rope_theta": 1e6}}),
    "smollm3-somerope": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2-nowindow": ("starcoder2", {"sliding_window": None}),
    "zamba2-seven": (
        "zamba2",
        {"num_hidden_layers": 7, "layers_block_type": ["mamba", "mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"]},
    ),
}
"""Variants of one type: name → (model type, changes)."""
