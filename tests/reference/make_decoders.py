"""Writes decoders/*.npz: tiny decoders, and the logits that transformers computes with them.

Wants `pip install torch transformers` (made with torch 2.13, transformers 5.24); the tests do not.
Each file holds the `config.json` and the tensors' names and shapes as text, ids, and f32 logits.
Script and test draw the weights alike, from names and shapes.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from drawn_weights import drawn

FOLDER = pathlib.Path(__file__).with_name("decoders")
TOKENS = 20
SMALL = dict(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
WHOLE = SMALL | dict(hidden_size=30, num_attention_heads=5, num_key_value_heads=5, head_dim=6)
WHOLE_NO_HEAD_DIM = {k: v for k, v in WHOLE.items() if k != "head_dim"}
ALIKE = {k: v for k, v in WHOLE_NO_HEAD_DIM.items() if k != "num_key_value_heads"}
GROUPED = SMALL | dict(hidden_size=48)
GROUPED_NO_HEAD_DIM = {k: v for k, v in GROUPED.items() if k != "head_dim"}
GPT = dict(vocab_size=37, n_embd=24, n_layer=2, n_head=3, n_positions=32, bos_token_id=1,
           eos_token_id=2)  # fmt: skip
FULL, LOCAL = "full_attention", "sliding_attention"
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=100.0)
LONG = dict(
    rope_type="longrope",
    short_factor=[1.0, 1.5, 2.0, 3.0],
    long_factor=[2.0, 3.0, 5.0, 8.0],
    rope_theta=100.0,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=500.0)  # fmt: skip
EXPERTS = dict(num_local_experts=6, num_experts_per_tok=2)
QWEN_EXPERTS = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12)
DEEPSEEK = {k: v for k, v in WHOLE.items() if k != "head_dim"} | dict(
    num_hidden_layers=3, first_k_dense_replace=1, moe_intermediate_size=12, n_routed_experts=6,
    num_experts_per_tok=2, n_group=3, topk_group=2, kv_lora_rank=12, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=8)  # fmt: skip
SMALL_NO_HEAD_DIM = {k: v for k, v in SMALL.items() if k != "head_dim"}
STATES = dict(vocab_size=37, hidden_size=24, state_size=5, num_hidden_layers=2, bos_token_id=1,
              eos_token_id=2, pad_token_id=None)  # fmt: skip
H1 = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=6, mamba_n_groups=1)
MISTRAL = dict(sliding_window=5)
MODELS = {
    "llama_biases": ("llama", SMALL | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "llama_linear": ("llama", SMALL | dict(rope_parameters=dict(
        rope_type="linear", factor=4.0, rope_theta=100.0), tie_word_embeddings=True)),
    "llama_dynamic": ("llama", SMALL | dict(max_position_embeddings=12, rope_parameters=dict(
        rope_type="dynamic", factor=3.0, rope_theta=100.0))),
    "llama_yarn": ("llama", SMALL | dict(rope_parameters=YARN)),
    "mistral_yarn": ("mistral", SMALL | MISTRAL | dict(rope_parameters=YARN)),
    "ministral3": ("ministral3", SMALL | dict(rope_parameters=YARN | dict(
        original_max_position_embeddings=7, mscale=0.8, mscale_all_dim=0.5, truncate=False,
        llama_4_scaling_beta=0.3))),
    "qwen2_sliding": ("qwen2", GROUPED_NO_HEAD_DIM | dict(num_hidden_layers=3, sliding_window=5,
        use_sliding_window=True, max_window_layers=1, rope_parameters=dict(rope_type="linear",
        factor=2.0, rope_theta=100.0))),
    "qwen3_biases": ("qwen3", SMALL | dict(attention_bias=True)),
    "gemma": ("gemma", SMALL),
    "gemma2": ("gemma2", SMALL | dict(sliding_window=5, query_pre_attn_scalar=20,
        attn_logit_softcapping=3.0, final_logit_softcapping=4.0)),
    "phi": ("phi", GROUPED_NO_HEAD_DIM),
    "phi_qk_norm": ("phi", WHOLE_NO_HEAD_DIM | dict(qk_layernorm=True, hidden_act="quick_gelu",
        rope_parameters=dict(rope_type="default", rope_theta=50.0, partial_rotary_factor=0.34))),
    "phi3": ("phi3", GROUPED_NO_HEAD_DIM | dict(sliding_window=6, rope_parameters=dict(
        rope_type="default", rope_theta=50.0, partial_rotary_factor=0.5))),
    "phi3_short": ("phi3", GROUPED_NO_HEAD_DIM | dict(original_max_position_embeddings=32,
        rope_parameters=LONG)),
    "phi3_long": ("phi3", GROUPED_NO_HEAD_DIM | dict(original_max_position_embeddings=16,
        rope_parameters=LONG | dict(attention_factor=1.3))),
    "olmo": ("olmo", GROUPED_NO_HEAD_DIM | dict(clip_qkv=0.8)),
    "olmo2": ("olmo2", GROUPED_NO_HEAD_DIM | dict(attention_bias=True)),
    "olmo3": ("olmo3", GROUPED_NO_HEAD_DIM | dict(layer_types=[LOCAL, FULL], sliding_window=5,
        rope_parameters={LOCAL: dict(rope_type="default", rope_theta=50.0), FULL: YARN})),
    "stablelm": ("stablelm", GROUPED_NO_HEAD_DIM | dict(use_qkv_bias=True)),
    "stablelm_parallel": ("stablelm", GROUPED_NO_HEAD_DIM | dict(use_parallel_residual=True,
        qk_layernorm=True)),
    "granite": ("granite", GROUPED_NO_HEAD_DIM | dict(attention_bias=True, mlp_bias=True,
        embedding_multiplier=3.0, logits_scaling=2.5, residual_multiplier=0.4,
        attention_multiplier=0.3)),
    "cohere": ("cohere", GROUPED_NO_HEAD_DIM | dict(use_qk_norm=True, logit_scale=0.3)),
    "cohere2": ("cohere2", GROUPED_NO_HEAD_DIM | dict(sliding_window=5, attention_bias=True,
        layer_types=[LOCAL, FULL])),
    "starcoder2": ("starcoder2", GROUPED_NO_HEAD_DIM | dict(sliding_window=6)),
    "nemotron": ("nemotron", SMALL | dict(attention_bias=True, mlp_bias=True)),
    "glm4": ("glm4", SMALL),
    "llama4": ("llama4_text", SMALL | dict(num_hidden_layers=4, intermediate_size_mlp=20,
        no_rope_layers=[1, 1, 0, 1], attention_chunk_size=6, interleave_moe_layer_step=2,
        floor_scale=5, num_local_experts=4, num_experts_per_tok=2)),
    "glm": ("glm", SMALL | dict(rope_parameters=dict(rope_type="default", rope_theta=50.0,
        partial_rotary_factor=0.75), attention_bias=False, tie_word_embeddings=True)),
    "arcee": ("arcee", SMALL | dict(attention_bias=True, mlp_bias=True)),
    "seed_oss": ("seed_oss", SMALL | dict(attention_out_bias=True)),
    "exaone4": ("exaone4", SMALL | dict(layer_types=[LOCAL, FULL], sliding_window=5,
        rope_parameters=LLAMA3)),
    "smollm3": ("smollm3", GROUPED_NO_HEAD_DIM | dict(no_rope_layers=[1, 0],
        use_sliding_window=True, sliding_window=5, layer_types=[FULL, LOCAL])),
    "helium": ("helium", WHOLE | dict(attention_bias=True)),
    "gpt_neox": ("gpt_neox", ALIKE | dict(rope_parameters=dict(
        rope_type="default", rope_theta=50.0, partial_rotary_factor=0.7))),
    "gpt_neox_in_turn": ("gpt_neox", ALIKE | dict(use_parallel_residual=False,
        attention_bias=False, hidden_act="relu", rope_parameters=dict(
        rope_type="default", rope_theta=50.0, partial_rotary_factor=1.0))),
    "mixtral": ("mixtral", GROUPED_NO_HEAD_DIM | EXPERTS | dict(sliding_window=5)),
    "qwen2_moe": ("qwen2_moe", GROUPED_NO_HEAD_DIM | QWEN_EXPERTS | dict(norm_topk_prob=True,
        shared_expert_intermediate_size=20, num_hidden_layers=3, mlp_only_layers=[1])),
    "qwen3_moe": ("qwen3_moe", SMALL | QWEN_EXPERTS | dict(attention_bias=True)),
    "olmoe": ("olmoe", GROUPED_NO_HEAD_DIM | dict(num_experts=6, num_experts_per_tok=3)),
    "phimoe": ("phimoe", GROUPED_NO_HEAD_DIM | EXPERTS | dict(attention_bias=True,
        lm_head_bias=True, router_jitter_noise=0.2, original_max_position_embeddings=32,
        rope_parameters=LONG | dict(short_mscale=1.2, long_mscale=1.2,
        original_max_position_embeddings=32))),
    "granitemoe": ("granitemoe", GROUPED_NO_HEAD_DIM | EXPERTS | dict(embedding_multiplier=3.0,
        logits_scaling=2.5, residual_multiplier=0.4, attention_multiplier=0.3)),
    "gpt_oss": ("gpt_oss", SMALL | EXPERTS | dict(sliding_window=5, swiglu_limit=1.5,
        rope_parameters=YARN | dict(truncate=False))),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK | dict(q_lora_rank=None, n_shared_experts=2,
        topk_method="group_limited_greedy", routed_scaling_factor=1.5, rope_parameters=YARN | dict(
        mscale=0.7, mscale_all_dim=0.9))),
    "deepseek_v2_greedy": ("deepseek_v2", DEEPSEEK | dict(q_lora_rank=10, attention_bias=True,
        first_k_dense_replace=0, n_shared_experts=1)),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | dict(q_lora_rank=10, n_shared_experts=1,
        rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=1.0))),
    "gptj": ("gptj", GPT | dict(rotary_dim=4)),
    "codegen": ("codegen", GPT | dict(n_head=4, rotary_dim=4)),
    "gpt_neo": ("gpt_neo", dict(vocab_size=37, hidden_size=24, num_layers=2, num_heads=3,
        max_position_embeddings=32, window_size=5, attention_types=[[["global", "local"], 1]],
        bos_token_id=1, eos_token_id=2)),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_bigcode_many": ("gpt_bigcode", GPT | dict(multi_query=False, n_inner=28)),
    "bloom": ("bloom", dict(vocab_size=37, hidden_size=24, n_layer=2, n_head=3)),
    "mpt": ("mpt", dict(vocab_size=37, d_model=24, n_heads=6, n_layers=2, max_seq_len=32,
        attn_config=dict(clip_qkv=0.8, softmax_scale=0.6))),
    "opt": ("opt", dict(vocab_size=37, hidden_size=24, ffn_dim=28, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=32, word_embed_proj_dim=24)),
    "opt_projected": ("opt", dict(vocab_size=37, hidden_size=24, ffn_dim=28, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=32, word_embed_proj_dim=16,
        do_layer_norm_before=False)),
    "falcon": ("falcon", dict(vocab_size=37, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, bias=True)),
    "falcon_new": ("falcon", dict(vocab_size=37, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=6, num_kv_heads=3, new_decoder_architecture=True)),
    "falcon_in_turn": ("falcon", dict(vocab_size=37, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, multi_query=False, parallel_attn=False,
        alibi=True)),
    "mamba": ("mamba", STATES | dict(time_step_rank=3, use_bias=True)),
    "mamba_untied": ("mamba", STATES | dict(tie_word_embeddings=False, conv_kernel=3,
        use_conv_bias=False, expand=3)),
    "mamba2": ("mamba2", STATES | dict(num_heads=6, head_dim=8, n_groups=2, chunk_size=8)),
    "mamba2_biases": ("mamba2", STATES | dict(num_heads=4, head_dim=12, n_groups=1, use_bias=True,
        tie_word_embeddings=True, time_step_limit=(0.4, 1.1))),
    "rwkv": ("rwkv", dict(vocab_size=37, hidden_size=24, intermediate_size=28, num_hidden_layers=2,
        attention_hidden_size=20, context_length=64)),
    "recurrent_gemma": ("recurrent_gemma", SMALL_NO_HEAD_DIM | dict(num_attention_heads=4,
        num_key_value_heads=1, hidden_size=32, num_hidden_layers=4, lru_width=24,
        attention_window_size=5, logits_soft_cap=4.0)),
    "jamba": ("jamba", GROUPED_NO_HEAD_DIM | dict(num_hidden_layers=4, attn_layer_period=3,
        attn_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=5,
        mamba_dt_rank=3, mamba_proj_bias=True)),
    "falcon_h1": ("falcon_h1", GROUPED_NO_HEAD_DIM | H1 | dict(ssm_in_multiplier=1.3,
        ssm_out_multiplier=0.7, ssm_multipliers=[0.9, 1.2, 0.8, 1.1, 0.6], key_multiplier=0.6,
        attention_in_multiplier=1.4, attention_out_multiplier=0.8, mlp_multipliers=[1.5, 0.7],
        embedding_multiplier=3.0, lm_head_multiplier=0.4)),
    "falcon_h1_norm": ("falcon_h1", SMALL | H1 | dict(mamba_rms_norm=True, mamba_proj_bias=True,
        projectors_bias=True, attention_bias=True, mlp_bias=True, mamba_n_groups=2,
        tie_word_embeddings=True)),
    "falcon_h1_gate_first": ("falcon_h1", SMALL | H1 | dict(mamba_rms_norm=True,
        mamba_norm_before_gate=False, num_hidden_layers=1)),
    "lfm2": ("lfm2", GROUPED_NO_HEAD_DIM | dict(num_hidden_layers=3, conv_bias=True,
        layer_types=["conv", FULL, "conv"], block_multiple_of=8, block_ffn_dim_multiplier=1.1)),
    "qwen3_next": ("qwen3_next", SMALL | QWEN_EXPERTS | dict(num_hidden_layers=3,
        layer_types=["linear_attention", FULL, "linear_attention"], mlp_only_layers=[2],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=10,
        linear_value_head_dim=16, shared_expert_intermediate_size=20)),
}  # fmt: skip


def make(kind, options):
    """One model's config, tensors' names and shapes, ids and logits."""
    config = tf.AutoConfig.for_model(kind, **options)
    classes = tf.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:  # tensors have other names in a file
        classes.from_config(config).save_pretrained(folder)
        file = pathlib.Path(folder, "model.safetensors")
        shapes = {name: tuple(x.shape) for name, x in load_file(file).items()}
        save_file({n: drawn(n, shape) for n, shape in shapes.items()}, file, {"format": "pt"})
        # With ALiBi, the eager attention of transformers' Falcon adds its terms twice.
        attention = "sdpa" if options.get("alibi") else "eager"
        eager = dict(attn_implementation=attention, experts_implementation="eager")
        model = classes.from_pretrained(folder, **eager).eval()
    with torch.no_grad():
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, TOKENS))
        logits = model(torch.tensor(ids), use_cache=False).logits.numpy()
    texts = {"config": config.to_json_string(use_diff=True), "shapes": json.dumps(shapes)}
    return {k: np.array(text) for k, text in texts.items()} | {"ids": ids, "logits": logits}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(FOLDER / f"{name}.npz", **make(*MODELS[name]))
        print(name, (FOLDER / f"{name}.npz").stat().st_size, "bytes")
