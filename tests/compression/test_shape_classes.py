"""Small weights of many shapes share programs, and have the bits that their own programs give."""

import jax
import numpy as np
import pytest
from contract_codecs import CODECS, KINDS, assert_same, encoder, weight

import jaxmem as jm
from jaxmem.compression import encoding, searched_groups
from jaxmem.core.padded import padded_encoder

PADDED = [codec for codec in CODECS if padded_encoder(codec)]
QUICK = jm.Int | jm.KMeans | jm.Bitmask | jm.Chain


each_codec = pytest.mark.parametrize(
    "codec",
    [
        pytest.param(c, marks=[] if c in KINDS and isinstance(c, QUICK) else pytest.mark.slow)
        for c in PADDED
    ],
    ids=str,
)


@each_codec
def test_a_padded_weight_has_the_leaf_of_a_program_of_its_own(codec):
    w = weight(2, 24, 37)
    assert_same(jm.encode({"w": w}, {"w": codec})["w"], encoder(codec)(w))


@each_codec
def test_a_shared_program_has_the_same_bits_if_it_is_optimized(codec, monkeypatch):
    params = {"w": weight(2, 24, 37)}
    quick = jm.encode(params, {"w": codec})
    monkeypatch.setattr(encoding, "OPTIMIZED_WEIGHTS", 0)
    assert_same(jm.encode(params, {"w": codec}), quick)


@pytest.mark.parametrize(
    "shape, axes, dtype",
    [
        ((33, 21), (-2,), "bfloat16"),
        ((16, 3, 8), (0,), "float32"),
        ((3, 8, 33), (-2, -1), "float16"),
        ((72, 0), (-2,), "float32"),
    ],
)
def test_any_shape_axes_and_dtype_are_padded_alike(shape, axes, dtype):
    codec, w = jm.Int(5, group=16, symmetric=False), weight(*shape).astype(dtype)
    plan, want = jm.Plan({"w": codec}, {"w": axes}), encoder(codec, axes)(w)
    for same in (w, np.asarray(w)):
        assert_same(jm.encode({"w": same}, plan)["w"], want)


def test_a_padded_weight_that_its_codec_cannot_take_is_refused_as_it_is():
    for codec, shape in ((jm.NM(2, 4), (66, 8)), (jm.Bitmask(0.001), (100, 8))):
        with pytest.raises(ValueError, match=f"{shape[0]}"):
            jm.encode({"w": weight(*shape)}, {"w": codec})


def test_weights_of_many_shapes_are_encoded_by_one_program():
    codec, before = jm.Int(6), encoding._compiled_to_share._cache_size()
    params = {f"w{i}": np.ones((65 + i, 72 + 8 * i), np.float32) for i in range(8)}
    encoded = jm.encode(params, dict.fromkeys(params, codec))
    assert encoding._compiled_to_share._cache_size() == before + 1
    assert all(encoded[name].shape == w.shape for name, w in params.items())


SEARCHED = [
    (jm.Int(3, group=24), (40, 24)),
    (jm.Int(6, group=64, symmetric=False), (2, 144, 9)),
    (jm.Int(8), (172, 5)),
]


@pytest.mark.parametrize("codec, shape", SEARCHED, ids=str)
def test_searched_groups_have_the_bits_of_a_program_of_their_own(codec, shape):
    codec, w = jm.Search(codec), weight(*shape)
    assert_same(jm.encode({"w": w}, {"w": codec})["w"], encoder(codec)(w))


def test_ranges_of_any_bits_and_shape_are_searched_by_one_program():
    before = searched_groups._search._cache_size()
    params = {f"w{i}": weight(70 * i, 30 + i) for i in range(3, 7)}
    plan = {f"w{i}": jm.Search(jm.Int(i, group=32 * i)) for i in range(3, 7)}
    encoded = jm.encode(params, plan)
    assert searched_groups._search._cache_size() <= before + 2  # groups of 128, and longer ones
    assert all(encoded[name].bits == int(name[1:]) for name in params)


def test_a_weight_that_is_committed_to_a_device_is_encoded_there():
    device = jax.devices()[1]
    leaf = jm.encode({"w": jax.device_put(weight(24, 40), device)}, {"w": jm.Int(8)})["w"]
    assert {d for part in jax.tree.leaves(leaf) for d in part.devices()} == {device}
