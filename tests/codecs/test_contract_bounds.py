"""Bounds that every codec keeps: fewer bytes, the predicted bytes, and the stated error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from contract_codecs import (
    CODECS,
    FORMS,
    KEEPS,
    KINDS,
    ROUNDS,
    SPARSE,
    assert_same,
    compiled_decode,
    decoded,
    each_codec,
    each_pair,
    encoded,
    encoder,
    weight,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmem as jm

CONSTANT_RTOL = {jm.Float("mxfp4"): 0.25, jm.Float("nvfp4"): 2e-2}  # -2.5 is not a number of theirs


def half_a_step(leaf, w):
    """Int: |w − decode| ≤ scale/2, or with a zero point scale · (1/2 + 2^(bits−10))."""
    scale = jnp.repeat(leaf.scale.mT.astype(jnp.float32), leaf.group, -1)
    scale = leaf.fold.unfold(scale[..., : leaf.fold.k])
    limit = scale * (0.5 if leaf.zero is None else 0.5 + 2.0 ** (leaf.bits - 10))
    return jnp.abs(w - leaf.decode()), limit + 1e-6 * jnp.abs(w)  # decode is one f32 product


def half_a_unit(leaf, w):
    """Cast: half a unit in the last place, |w| · 2^-8 (bfloat16), 2^-11 (float16, or 2^-25)."""
    kind = jnp.finfo(leaf.values.dtype)
    least = 2.0**-25 if kind.dtype == jnp.float16 else 0.0
    return jnp.abs(w - leaf.decode()), jnp.maximum(jnp.abs(w) * 2.0 ** -(kind.nmant + 1), least)


def next_singular_value(leaf, w):
    """LowRank: no matrix of this rank is nearer to w in the spectral norm."""
    sizes = lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)
    return sizes(w - leaf.decode())[0], sizes(w)[leaf.v.shape[-2]] * (1 + 1e-4)


def for_each_weight(leaf, groups):
    """An array of one number per group (*stack, groups, n), repeated for each weight."""
    wide = jnp.repeat(groups.mT.astype(jnp.float32), leaf.group, -1)
    return leaf.fold.unfold(wide[..., : leaf.fold.k])


def half_a_float(leaf, w):
    """Float: max(|w| · 2^−(f+1), scale · 2^(e−f−1)); |w| · 2^−3 where mxfp8 clips."""
    kinds = {"e5m2": (2, -14), "e2m1": (1, 0), "mxfp4": (1, 0), "nvfp4": (1, 0)}
    fraction, least = kinds.get(leaf.format, (3, -6))
    relative = 2.0**-3 if leaf.format == "mxfp8" else 2.0 ** -(fraction + 1)
    least = for_each_weight(leaf, leaf.scales()) * 2.0 ** (least - fraction - 1)
    return jnp.abs(w - leaf.decode()), jnp.maximum(jnp.abs(w) * relative, least) * (1 + 1e-6)


def half_a_gap(leaf, w):
    """Codebook: scale times half the widest gap between levels."""
    gap = {"nf4": 0.152, "fp4": 1 / 6}[leaf.levels]
    return jnp.abs(w - leaf.decode()), for_each_weight(leaf, leaf.scale) * gap * (1 + 1e-6)


def half_a_cell(leaf, w):
    """Planes: Δ · 2^(8−bits)/2, and |a| · 2^-11, for every number of bits."""
    error = [jnp.abs(w - jm.at_bits(leaf, b).decode()) * 2.0 ** (b - 8) for b in range(2, 9)]
    slack = jnp.abs(for_each_weight(leaf, leaf.low)) * 2.0**-11 + 2.0**-24
    return jnp.stack(error), (for_each_weight(leaf, leaf.step) / 2 + slack)[None] * (1 + 1e-6)


def half_a_step_and_an_end(leaf, w):
    """Affine: step · (1/2 + 2^(bits−11)) + |low| · 2^-11, and 2^-24."""
    step, low = for_each_weight(leaf, leaf.scale), for_each_weight(leaf, leaf.low)
    limit = step * (0.5 + 2.0 ** (leaf.bits - 11)) + jnp.abs(low) * 2.0**-11 + 2.0**-24
    return jnp.abs(w - leaf.decode()), limit + 1e-6 * jnp.abs(w)


def equal_cells(leaf, w):
    """KMeans: the root mean square error is at most half of 1 / 2^bits of the range, plus f16's."""
    cut = lambda w: w.reshape(-1, leaf.group, w.shape[-1])
    rms = lambda x: jnp.sqrt((cut(x) ** 2).mean(1))
    limit = (cut(w).max(1) - cut(w).min(1)) / 2 ** (leaf.bits + 1)
    return rms(w - leaf.decode()), limit + jnp.abs(cut(w)).max(1) * 2.0**-11 + 2.0**-24


def the_least_kept(leaf, w):
    """Sparse: kept weights are exact, and no dropped weight of a row (group) is larger."""
    got, size = leaf.decode(), jnp.abs(w)
    rows = w.size if hasattr(leaf, "column") else getattr(leaf, "m", w.shape[0])
    cut = lambda a: a.T.reshape(-1, rows)
    least = cut(jnp.where(got != 0, size, jnp.inf)).min(1, keepdims=True)
    limit = jnp.broadcast_to(least, cut(w).shape).reshape(w.T.shape).T
    return jnp.abs(w - got), jnp.where(got != 0, 0, limit)


BOUNDS = {
    jm.Int: half_a_step,
    jm.Cast: half_a_unit,
    jm.LowRank: next_singular_value,
    jm.Float: half_a_float,
    jm.Codebook: half_a_gap,
    jm.Planes: half_a_cell,
    jm.KMeans: equal_cells,
    jm.Affine: half_a_step_and_an_end,
    jm.Bitmask: the_least_kept,
    jm.NM: the_least_kept,
    jm.Csr: the_least_kept,
    jm.Coo: the_least_kept,
}


@each_pair
def test_stands_for_the_array_with_fewer_bytes(codec, form):
    dtype, shape = FORMS[form]
    w = jax.ShapeDtypeStruct(shape, dtype)
    leaf = jax.eval_shape(codec.encode, w)
    dense = jax.eval_shape(lambda leaf: leaf.decode(), leaf)
    for x in (leaf, dense):
        assert (x.shape, x.dtype, x.ndim, x.size) == (w.shape, w.dtype, w.ndim, w.size)
    assert leaf.stack[: len(shape) - 2] == shape[:-2]
    assert jm.nbytes(leaf) < w.size * 4
    assert jm.nbytes(leaf) < jm.nbytes(w) or isinstance(codec, jm.Cast)


@each_pair
def test_bytes_are_predicted_from_shapes_and_are_what_the_executable_takes(codec, form):
    dtype, shape = FORMS[form]
    abstract = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct(shape, dtype))
    leaf = encoded(codec, form)
    assert jax.tree.structure(leaf) == jax.tree.structure(abstract)
    memory = compiled_decode(codec, form).memory_analysis()
    assert jm.nbytes(abstract) == jm.nbytes(leaf) == memory.argument_size_in_bytes


@pytest.mark.parametrize("codec", [c for c in KINDS if not isinstance(c, jm.Cast)], ids=str)
@pytest.mark.parametrize("n", [4096, 4099])
def test_a_long_weight_is_never_dense(codec, n):
    w = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((512, n), jnp.float32))
    x = jax.ShapeDtypeStruct((40, 512), jnp.float32)
    program = jit(jm.lift(jnp.matmul, on_decode="error")).lower(x, w).compile()
    assert program.memory_analysis().temp_size_in_bytes < w.size * 4 / 2


@pytest.mark.parametrize("codec", [*ROUNDS, *KEEPS], ids=str)
@pytest.mark.parametrize("form", ["f32", pytest.param("bf16 stacked", marks=pytest.mark.slow)])
def test_encoding_again_changes_nothing(codec, form):
    leaf = encoded(codec, form)
    assert_same(encoder(codec)(decoded(codec, form)), leaf.astype(jnp.float32))


@pytest.mark.parametrize("codec", [c for c in CODECS if type(c) in BOUNDS], ids=str)
def test_the_error_is_within_its_stated_bound(codec):
    found = jit(BOUNDS[type(codec)])(encoded(codec), weight(32, 24))
    error, limit = jax.device_get(found)
    assert (error <= limit).all()


@functools.cache
def error_and_bound(codec):
    return jit(lambda w: BOUNDS[type(codec)](codec.encode(w), w))


@settings(max_examples=10, deadline=None)
@given(
    codec=st.sampled_from(ROUNDS),
    shape=st.tuples(*[st.integers(1, 21)] * 2),
    size=st.sampled_from([1e-8, 1e-5, 0.02, 1.0, 30.0]),
    kind=st.sampled_from(["normal", "constant", "one big", "positive"]),
)
def test_any_weight_is_within_the_bound(codec, shape, size, kind):
    w = np.asarray(weight(21, 21))[: shape[0], : shape[1]] * np.float32(size)
    if kind == "one big":
        w[0, 0] = 1000 * size
    elif kind != "normal":
        w = np.abs(w) + np.float32(size) if kind == "positive" else np.full_like(w, -size)
    error, limit = jax.device_get(error_and_bound(codec)(w))
    assert (error <= limit).all()


@pytest.mark.parametrize("codec", [c for c in CODECS if c not in SPARSE], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_a_constant_weight_is_exact_or_as_near_as_its_floats(codec, value):
    got = compiled_decode(codec)(encoder(codec)(np.full((32, 24), value, np.float32)))
    rtol = 2e-2 if isinstance(codec, jm.Chain) else CONSTANT_RTOL.get(codec, 1e-3)
    np.testing.assert_allclose(got, value, rtol=rtol)


@each_codec
def test_a_large_weight_is_as_near_or_refused_and_a_small_one_no_further_than_zero(codec):
    w = np.asarray(weight(32, 24), np.float64)

    def error(size):
        leaf = encoder(codec)(np.asarray(w * size, np.float32))
        floats = [a for a in jax.tree.leaves(leaf) if jnp.issubdtype(a.dtype, jnp.floating)]
        if not all(np.isfinite(a).all() for a in jax.device_get(floats)):
            return None  # `jm.encode` refuses it
        return np.linalg.norm(compiled_decode(codec)(leaf) / size - w) / np.linalg.norm(w)

    usual, small, *large = map(error, (1.0, 2.0**-30, 2.0**20, 2.0**50))
    assert small <= 1.0 and all(e is None or e <= 1.01 * usual for e in large)
