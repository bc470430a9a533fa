"""Published config.json files of decoders, in the words of transformers 4, are read."""

import numpy as np
import pytest

from jaxmem.architectures.attention.positions import alibi_slopes
from jaxmem.architectures.decoder import Config

PUBLISHED = {
    "pythia-160m": (
        dict(
            model_type="gpt_neox", hidden_size=768, intermediate_size=3072, num_attention_heads=12,
            num_hidden_layers=12, vocab_size=50304, max_position_embeddings=2048, hidden_act="gelu",
            rotary_pct=0.25, rotary_emb_base=10000, use_parallel_residual=True,
            layer_norm_eps=1e-05, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        ),
        dict(rotary_dim=16, parallel=True, shared_norm=False, kv_heads=12, activation="gelu"),
    ),
    "phi-2": (
        dict(
            model_type="phi", hidden_size=2560, intermediate_size=10240, num_attention_heads=32,
            num_hidden_layers=32, num_key_value_heads=32, vocab_size=51200, qk_layernorm=False,
            hidden_act="gelu_new", partial_rotary_factor=0.4, rope_scaling=None, rope_theta=10000.0,
            max_position_embeddings=2048, resid_pdrop=0.1, embd_pdrop=0.0, layer_norm_eps=1e-05,
        ),
        dict(rotary_dim=32, head_bias=True, gelu=True, gated=False, shared_norm=True),
    ),
    "phi-3-mini-4k": (
        dict(
            model_type="phi3", hidden_size=3072, intermediate_size=8192, num_attention_heads=32,
            num_hidden_layers=32, num_key_value_heads=32, vocab_size=32064, sliding_window=2047,
            original_max_position_embeddings=4096, max_position_embeddings=4096, rope_scaling=None,
            rms_norm_eps=1e-05, attention_bias=False, eos_token_id=32000, bos_token_id=1,
        ),
        dict(window=2047, rotary_dim=0, context=4096, tensor_names="phi3"),
    ),
    "gemma-2-2b": (
        dict(
            model_type="gemma2", hidden_size=2304, intermediate_size=9216, num_attention_heads=8,
            num_hidden_layers=26, num_key_value_heads=4, head_dim=256, vocab_size=256000,
            hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
            attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096,
            query_pre_attn_scalar=256, cache_implementation="hybrid", rope_theta=10000.0,
        ),
        dict(local=(True, False) * 13, attention_softcap=50.0, logit_softcap=30.0, tied=True,
             query_scale=1 / 16, embed_scale=48.0),
    ),
    "command-r7b": (
        dict(
            model_type="cohere2", hidden_size=4096, intermediate_size=14336, head_dim=128,
            num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, vocab_size=256000,
            layer_norm_eps=1e-05, logit_scale=0.25, max_position_embeddings=8192,
            order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
            rope_theta=50000, rotary_pct=1.0, sliding_window=4096, sliding_window_pattern=4,
            use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
            use_parallel_embedding=True,
        ),
        dict(no_rope=(False, False, False, True) * 8, logit_scale=0.25, tied=True),
    ),
    "starcoder2-3b": (
        dict(
            model_type="starcoder2", hidden_size=3072, intermediate_size=12288, vocab_size=49152,
            num_attention_heads=24, num_hidden_layers=30, num_key_value_heads=2, use_bias=True,
            hidden_act="gelu_pytorch_tanh", activation_function="gelu", norm_type="layer_norm",
            mlp_type="default", norm_epsilon=1e-05, layer_norm_epsilon=1e-05, sliding_window=4096,
            attention_softmax_in_fp32=True, scale_attention_softmax_in_fp32=True,
            scale_attn_weights=True, max_position_embeddings=16384, rope_theta=999999.44,
        ),
        dict(window=4096, gelu=True, tied=True, mlp_bias=True),
    ),
    "bloom-560m": (
        dict(
            model_type="bloom", n_embed=1024, n_inner=None, n_layer=24, num_attention_heads=16,
            vocab_size=250880, seq_length=2048, offset_alibi=100, pretraining_tp=1,
            bias_dropout_fusion=True, masked_softmax_fusion=True, skip_bias_add=True,
            skip_bias_add_qkv=False, attention_softmax_in_fp32=True, unk_token_id=0,
            apply_residual_connection_post_layernorm=False, layer_norm_epsilon=1e-05,
        ),
        dict(width=1024, ffn=4096, heads=16, positions="alibi", embed_norm=True, tied=True),
    ),
    "gpt-j-6b": (
        dict(
            model_type="gptj", n_embd=4096, n_layer=28, n_head=16, n_positions=2048, n_inner=None,
            rotary=True, rotary_dim=64, scale_attn_weights=True, vocab_size=50400,
            activation_function="gelu_new", tie_word_embeddings=False, gradient_checkpointing=False,
            summary_type="cls_index", task_specific_params={"text-generation": {"top_p": 0.9}},
        ),
        dict(rotary_dim=64, interleaved=True, ffn=16384, head_bias=True),
    ),
    "opt-125m": (
        dict(
            model_type="opt", hidden_size=768, ffn_dim=3072, num_attention_heads=12,
            num_hidden_layers=12, vocab_size=50272, max_position_embeddings=2048,
            word_embed_proj_dim=768,
            do_layer_norm_before=True, _remove_final_layer_norm=False, activation_dropout=0.0,
            activation_function="relu", dropout=0.1, layerdrop=0.0, init_std=0.02, prefix="</s>",
        ),
        dict(position_offset=2, activation="relu", norm_bias=True, tied=True),
    ),
    "opt-350m": (
        dict(
            model_type="opt", hidden_size=1024, ffn_dim=4096, num_attention_heads=16,
            num_hidden_layers=24, vocab_size=50272, max_position_embeddings=2048,
            word_embed_proj_dim=512, do_layer_norm_before=False, prefix="</s>",
        ),
        dict(embed_width=512, final_norm=False, sum_norms=True, pre_norms=False, tied=True),
    ),
    "mpt-7b-storywriter": (
        dict(
            model_type="mpt", d_model=4096, n_heads=32, n_layers=32, max_seq_len=65536,
            vocab_size=50432, expansion_ratio=4, no_bias=True, logit_scale=None,
            attn_config=dict(alibi=True, alibi_bias_max=16, clip_qkv=6, attn_impl="torch",
                attn_type="multihead_attention", qk_ln=False, softmax_scale=None),
        ),
        dict(positions="alibi", alibi_max=16.0, clip_qkv=6.0, norm_bias=False),
    ),
    "falcon-7b": (
        dict(
            model_type="falcon", hidden_size=4544, num_attention_heads=71, num_hidden_layers=32,
            alibi=False, apply_residual_connection_post_layernorm=False, bias=False,
            multi_query=True, new_decoder_architecture=False, parallel_attn=True, vocab_size=65024,
        ),
        dict(kv_heads=1, head_dim=64, ffn=18176, shared_norm=True, tied=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_read(name):
    hf, expected = PUBLISHED[name]
    config = Config.from_hf(hf)
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.family == "decoder"


@pytest.mark.parametrize("heads", [4, 6])
def test_the_largest_exponent_of_alibi_is_that_of_mpt(heads):
    whole = 8 if heads == 6 else heads  # as llm-foundry's gen_slopes has it (MosaicML, 2023)
    series = 2.0 ** -(16 * np.arange(1, whole + 1) / whole)
    want = series if heads == 4 else np.concatenate([series[1::2], series[::2]])[:heads]
    np.testing.assert_allclose(alibi_slopes(heads, 16.0), want, rtol=1e-6)


@pytest.mark.parametrize(
    "name, change",
    [
        ("falcon-7b", {"alibi": 1}),
        ("opt-125m", {"word_embed_proj_dim": 768, "do_layer_norm_before": False}),
        ("mpt-7b-storywriter", {"norm_type": "low_precision_rmsnorm"}),
        ("bloom-560m", {"apply_residual_connection_post_layernorm": True}),
        ("gpt-j-6b", {"scale_attn_weights": False}),
        ("command-r7b", {"use_parallel_block": False}),
        ("command-r7b", {"layer_types": ["full_attention"]}),
        ("gemma-2-2b", {"use_bidirectional_attention": True}),
        ("phi-2", {"partial_rotary_factor": 0.0}),
        ("pythia-160m", {"hidden_act": "mish"}),
        ("starcoder2-3b", {"rope_scaling": {"rope_type": "mrope"}}),
        ("phi-3-mini-4k", {"twist": 2}),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(name, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Config.from_hf(PUBLISHED[name][0] | change)
