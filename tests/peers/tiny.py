"""Configurations of the smallest models of each family with one layer of every kind.

The keys are those that the peers ship for Evo 1 (8k) and Evo 2 (7B, 8k), less those that nothing
reads; widths differ from each other wherever the model allows it, so that a swap shows.
"""

from __future__ import annotations

from typing import Any

EVO1: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_filters": 32,
    "attn_layer_idxs": [1],
    "hyena_layer_idxs": [0, 2],
    "num_layers": 3,
    "short_filter_length": 3,
    "num_attention_heads": 2,
    "short_filter_bias": True,
    "eps": 1.0e-6,
    "state_size": 8,
    "inner_size_multiple_of": 16,
    "inner_mlp_size": 48,
    "proj_groups": 1,
    "hyena_filter_groups": 1,
    "model_parallel_size": 1,
    "tie_embeddings": True,
    "mha_out_proj_bias": True,
    "qkv_proj_bias": True,
    "final_norm": True,
    "use_flash_attn": False,
    "use_flash_rmsnorm": False,
    "use_flash_depthwise": False,
    "use_flashfft": False,
    "prefill_style": "fft",
    "mlp_activation": "gelu",
}

# Evo 1 at 131k: positions divided by 16.
EVO1_LONG: dict[str, Any] = EVO1 | {
    "use_interpolated_rotary_pos_emb": True,
    "rotary_emb_scaling_factor": 16,
}

EVO2: dict[str, Any] = {
    "model_name": "tiny",
    "vocab_size": 512,
    "hidden_size": 32,
    "num_filters": 32,
    "hcs_layer_idxs": [0],
    "hcm_layer_idxs": [1],
    "hcl_layer_idxs": [2],
    "attn_layer_idxs": [3],
    "hcs_filter_length": 7,
    "hcm_filter_length": 128,
    "hcs_filter_groups": 8,
    "hcm_filter_groups": 4,
    "hcl_filter_groups": 32,
    "num_layers": 4,
    "short_filter_length": 3,
    "num_attention_heads": 2,
    "short_filter_bias": False,
    "eps": 1.0e-6,
    "state_size": 16,
    "rotary_emb_base": 10000,
    "inner_size_multiple_of": 16,
    "inner_mlp_size": 48,
    "proj_groups": 1,
    "hyena_filter_groups": 1,
    "column_split_hyena": False,
    "column_split": True,
    "interleave": True,
    "evo2_style_activations": True,
    "model_parallel_size": 1,
    "tie_embeddings": True,
    "mha_out_proj_bias": True,
    "hyena_out_proj_bias": True,
    "hyena_flip_x1x2": False,
    "qkv_proj_bias": False,
    "use_fp8_input_projections": False,
    "max_seqlen": 512,
    "max_batch_size": 1,
    "final_norm": True,
    "use_flash_attn": False,
    "use_flash_rmsnorm": False,
    "use_flash_depthwise": False,
    "use_flashfft": False,
    "inference_mode": True,
    "prefill_style": "fft",
    "mlp_activation": "gelu",
    "print_activations": False,
}
