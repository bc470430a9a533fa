"""Texts packed into a row have the logits that each has alone, or the model refuses them."""

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import MEMBERS, member
from test_encoders import member as encoder_member

from jaxmem.architectures import decoder, encoder, gpt2
from jaxmem.kv_cache.packed_texts import packed

# One for each mechanism that knows where a token is.
DECODERS = ["bloom", "cohere2", "deepseek_v3", "gemma2", "gptj", "llama4", "opt"]
TOKENS = 9  # of the longer text: two of them are in the context of each reference model


def packed_row(ids, shorter=3):
    """The first text without its last tokens, and the last text, in a row; its segments."""
    first, second = ids[0, : TOKENS - shorter], ids[-1, :TOKENS]
    segments = np.repeat([4, 7], [len(first), len(second)])
    return np.concatenate([first, second])[None].astype(np.int32), segments[None].astype(np.int32)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_each_text_the_logits_it_has_alone(name):
    config, params, file, _ = member(name)
    ids, segments = packed_row(file["ids"])
    run = cheap_jit.jit(lambda p, i, s: decoder.module(config).apply({"params": p}, i, segments=s))
    found, expected = run(params, ids, segments)[0], file["logits"]
    expected = np.concatenate([expected[0, : TOKENS - 3], expected[-1, :TOKENS]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_gpt2_gives_each_text_the_logits_it_has_alone():
    net = gpt2.module(gpt2.Config(vocab=64, width=16, layers=2, heads=2, context=32))
    ids = jax.random.randint(jax.random.key(0), (2, 9), 0, 64)
    params = cheap_jit.jit(net.init)(jax.random.key(1), ids)
    row, segments = packed_row(np.asarray(ids))
    together = lambda p: (
        net.apply(p, row, segments=segments),
        net.apply(p, ids),
        net.apply(p, row),
    )
    found, alone, mixed = cheap_jit.jit(together)(params)
    expected = jnp.concatenate([alone[0, :-3], alone[1]])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert np.abs(mixed[0, 6:] - alone[1]).max() > 1e-2  # so it does without segments


@pytest.mark.parametrize(
    "name", ["bert_tokens", "modernbert_masked", "mpnet_masked", "roberta_masked"]
)
def test_an_encoder_gives_each_text_the_output_it_has_alone(name):
    config, params, file, _ = encoder_member(name)
    net = encoder.module(config)
    whole = file["ids"][:1, :TOKENS]
    assert file["mask"][0, :TOKENS].all()
    ids, segments = packed_row(np.concatenate([whole, whole[:, ::-1]]), 2)
    both = lambda p: (
        net.apply({"params": p}, ids, segments=segments),
        net.apply({"params": p}, whole[:, :-2]),
        net.apply({"params": p}, whole[:, ::-1]),
    )
    found, first, second = cheap_jit.jit(both)(params)
    expected = np.concatenate([first[0], second[0]])
    np.testing.assert_allclose(found[0], expected, atol=1e-4 * np.abs(expected).max())


def test_positions_are_counted_where_segments_change():
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 3, 3]])
    assert packed(segments, segments).positions.tolist() == [[0, 1, 2, 0, 1, 0], [*range(6)]]


@pytest.mark.parametrize("name", ["mamba", "rwkv", "jamba", "lfm2"])
def test_layers_with_a_state_refuse_packed_texts(name):
    assert name in MEMBERS
    config, params, file, _ = member(name)
    with pytest.raises(NotImplementedError, match="layers with a state"):
        decoder.module(config).apply({"params": params}, file["ids"], segments=file["ids"])


def test_what_says_nothing_about_texts_is_refused():
    config, params, file, _ = member("gemma2")
    net, ids = decoder.module(config), jnp.asarray(file["ids"], jnp.int32)
    with pytest.raises(ValueError, match="positions are given without segments"):
        net.apply({"params": params}, ids, positions=ids)
    with pytest.raises(ValueError, match=r"segments have the shape \(\d+, 2\), expected"):
        net.apply({"params": params}, ids, segments=ids[:, :2])
    with pytest.raises(TypeError, match="expected integers"):
        net.apply({"params": params}, ids, segments=ids.astype(jnp.float32))
    with pytest.raises(ValueError, match="one text a row"):
        cache = config.cache(len(ids), ids.shape[1])
        net.apply({"params": params}, ids, cache, segments=ids)
