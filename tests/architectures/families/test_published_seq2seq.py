"""Published config.json files of encoder-decoders, in the words of transformers 4, are read."""

import pytest

from jaxmem.architectures.seq2seq import Config, weights

T5_BASE = dict(
    architectures=["T5ForConditionalGeneration"], d_ff=3072, d_kv=64, d_model=768,
    decoder_start_token_id=0, dropout_rate=0.1, eos_token_id=1, initializer_factor=1.0,
    is_encoder_decoder=True, layer_norm_epsilon=1e-06, model_type="t5", n_positions=512,
    num_heads=12, num_layers=12, output_past=True, pad_token_id=0, vocab_size=32128,
    relative_attention_num_buckets=32, task_specific_params={"summarization": {"num_beams": 4}},
)  # fmt: skip
BART_SIZES = dict(
    activation_dropout=0.1, attention_dropout=0.1, classif_dropout=0.0, d_model=1024,
    decoder_attention_heads=16, decoder_ffn_dim=4096, decoder_layerdrop=0.0, decoder_layers=12,
    encoder_attention_heads=16, encoder_ffn_dim=4096, encoder_layerdrop=0.0, encoder_layers=12,
    init_std=0.02, is_encoder_decoder=True, num_hidden_layers=12, max_position_embeddings=1024,
    pad_token_id=1, bos_token_id=0, eos_token_id=2, use_cache=True,
)  # fmt: skip
PUBLISHED = {
    "t5-base": (T5_BASE, dict(head_scale=768**-0.5, gated=False, encoder_layers=12, head_dim=64)),
    "flan-t5-base": (
        T5_BASE
        | dict(
            d_ff=2048, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            relative_attention_max_distance=128, num_decoder_layers=12, is_gated_act=True,
            dense_act_fn="gelu_new",
        ),
        dict(head_scale=1.0, gated=True, activation="gelu_tanh", farthest=128),
    ),
    "bart-large-cnn": (
        BART_SIZES
        | dict(
            model_type="bart", vocab_size=50264, activation_function="gelu", early_stopping=True,
            add_final_layer_norm=False, decoder_start_token_id=2, forced_bos_token_id=0,
            force_bos_token_to_be_generated=True, forced_eos_token_id=2, length_penalty=2.0,
            max_length=142, min_length=56, no_repeat_ngram_size=3, normalize_before=False,
            num_beams=4, output_past=True, prefix=" ", replacing_rate=0, scale_embedding=False,
            id2label={"0": "a", "1": "b", "2": "c"},
        ),
        dict(start=2, forced=(0,), eos=(2,), position_offset=2, embed_norm=True, pre_norms=False),
    ),
    "mbart-large-50": (
        BART_SIZES
        | dict(
            model_type="mbart", vocab_size=250054, activation_function="gelu", max_length=200,
            add_bias_logits=False, add_final_layer_norm=True, decoder_start_token_id=2,
            normalize_before=True, normalize_embedding=True, scale_embedding=True, num_beams=5,
            static_position_embeddings=False, tokenizer_class="MBart50Tokenizer",
        ),
        dict(pre_norms=True, final_norm=True, embed_norm=True, embed_scale=32.0),
    ),
    "opus-mt-en-de": (
        BART_SIZES
        | dict(
            model_type="marian", vocab_size=58101, decoder_vocab_size=58101, d_model=512,
            decoder_attention_heads=8, encoder_attention_heads=8, activation_function="swish",
            add_bias_logits=False, add_final_layer_norm=False, bad_words_ids=[[58100]],
            decoder_start_token_id=58100, eos_token_id=0, extra_pos_embeddings=58101,
            max_position_embeddings=512, normalize_before=False, normalize_embedding=False,
            num_beams=6, pad_token_id=58100, scale_embedding=True, static_position_embeddings=True,
            share_encoder_decoder_embeddings=True, forced_eos_token_id=0,
        ),
        dict(activation="silu", suppressed=(58100,), positions="sinusoidal", logit_bias=True),
    ),
    "m2m100-418m": (
        BART_SIZES
        | dict(
            model_type="m2m_100", vocab_size=128112, activation_function="relu", num_beams=5,
            decoder_start_token_id=2, early_stopping=True, max_length=200, scale_embedding=True,
        ),
        dict(pad=1, ends_at_slowest=True, logit_bias=False, embed_norm=False, activation="relu"),
    ),
    "blenderbot-400m": (
        BART_SIZES
        | dict(
            model_type="blenderbot", vocab_size=8008, activation_function="gelu", d_model=1280,
            decoder_attention_heads=32, encoder_attention_heads=32, encoder_layers=2,
            do_blenderbot_90_layernorm=True, encoder_no_repeat_ngram_size=3, pad_token_id=0,
            layernorm_variant="prelayernorm", extra_pos_embeddings=0, scale_embedding=True,
            bos_token_id=1, decoder_start_token_id=1, unk_token_id=3, max_position_embeddings=128,
        ),
        dict(encoder_layers=2, start=1, position_offset=0, pre_norms=True, context=128),
    ),
    "whisper-tiny.en": (
        dict(
            model_type="whisper", activation_function="gelu", begin_suppress_tokens=[220, 50256],
            bos_token_id=50257, d_model=384, decoder_attention_heads=6, decoder_ffn_dim=1536,
            decoder_layers=4, decoder_start_token_id=50257, encoder_attention_heads=6,
            encoder_ffn_dim=1536, encoder_layers=4, eos_token_id=50256, init_std=0.02,
            forced_decoder_ids=[[1, 50362]], is_encoder_decoder=True, max_length=448,
            max_source_positions=1500, max_target_positions=448, num_hidden_layers=4,
            num_mel_bins=80, pad_token_id=50256, scale_embedding=False, vocab_size=51864,
            suppress_tokens=[1, 2, 50361],
        ),
        dict(start=50257, prefix=(50362,), suppressed=(1, 2, 50361), encoder_context=1500,
             key_bias=False, suppressed_first=(220, 50256), mels=80, context=448),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_read(name):
    hf, expected = PUBLISHED[name]
    config = Config.from_hf(hf)
    assert {field: getattr(config, field) for field in expected} == expected
    assert Config(**config.to_dict()) == config
    assert weights(config)["embed/embedding"].shape == (hf["vocab_size"], hf["d_model"])


@pytest.mark.parametrize(
    "name, change",
    [
        ("t5-base", {"relative_attention_num_buckets": 0}),
        ("whisper-tiny.en", {"forced_decoder_ids": [[2, 50362]]}),
        ("whisper-tiny.en", {"forced_decoder_ids": [[1, -1]]}),
        ("whisper-tiny.en", {"use_weighted_layer_sum": True}),
        ("bart-large-cnn", {"activation_function": "mish"}),
        ("m2m100-418m", {"twist": 2}),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(name, change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        Config.from_hf(PUBLISHED[name][0] | change)
