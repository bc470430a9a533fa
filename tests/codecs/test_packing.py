"""Packed codes are unpacked unchanged, at any width, in any number, along any axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmem as jm
from jaxmem.codecs.host_packing import pack_on_host, unpack_on_host
from jaxmem.codecs.packing import WIDTHS, field_parts, interleave, pack, shifts, unpack, unpack_rows

packed = jit(pack, static_argnames=("bits", "axis"))
unpacked = jit(unpack, static_argnames=("bits", "n", "axis"))
rows = jit(unpack_rows, static_argnames="bits")
each_width = pytest.mark.parametrize("bits", WIDTHS)


def codes_of(shape, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint8)


def as_unpacked(codes, bits):
    """The codes as `unpack` returns them: int8, with codes of 8 bits less 128."""
    return (codes.astype(np.int16) - (128 if bits == 8 else 0)).astype(np.int8)


@each_width
def test_every_code_of_a_width_comes_back(bits):
    codes = np.arange(2**bits, dtype=np.uint8)
    back = unpacked(packed(codes, bits=bits, axis=-1), bits=bits, n=codes.size, axis=-1)
    np.testing.assert_array_equal(back, as_unpacked(codes, bits))


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from(list(WIDTHS)),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 19), st.integers(0, 3)),
    axis=st.sampled_from([-1, -2]),
)
def test_codes_come_back_from_any_shape(bits, shape, axis):
    codes = codes_of(shape, bits)
    fields = packed(codes, bits=bits, axis=axis)
    back = unpacked(fields, bits=bits, n=shape[axis], axis=axis)
    assert back.dtype == jnp.int8
    np.testing.assert_array_equal(back, as_unpacked(codes, bits))
    np.testing.assert_array_equal(unpack_on_host(fields, bits, shape[axis], axis), codes)
    jax.tree.map(np.testing.assert_array_equal, pack_on_host(codes, bits, axis), fields)


@each_width
@pytest.mark.parametrize("n", [0, 1, 7, 8, 24])
def test_no_bit_is_wasted_but_the_last_byte(bits, n):
    fields = jax.eval_shape(functools.partial(pack, bits=bits, axis=-1), codes_of((n,), bits))
    bytes_taken = sum(field.size for field in fields)
    assert bytes_taken == sum(-(-n * width // 8) for width, _ in shifts(bits))
    assert n % 8 or bytes_taken == n * bits // 8


@each_width
def test_rows_are_looked_up_without_unpacking_the_others(bits):
    codes, index = codes_of((13, 3), bits), np.array([12, 0, 5, 5, 7])
    got = rows(packed(codes, bits=bits, axis=-2), bits=bits, index=index)
    np.testing.assert_array_equal(got, as_unpacked(codes, bits)[index])


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_interleave_undoes_field_parts(width):
    field = codes_of((2, 3), 8).astype(np.int8 if width == 8 else np.uint8)
    parts = field_parts(jnp.asarray(field), width)
    together = np.asarray(interleave(parts, -1))
    assert together.shape == (2, 3 * len(parts))
    for j, part in enumerate(parts):
        np.testing.assert_array_equal(together[:, j :: len(parts)], part)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_look_up_of_one_row_copies_no_table_on_a_tpu(bits):
    pytest.importorskip("libtpu")
    shape = jax.ShapeDtypeStruct((160_000, 2048), jnp.float32)  # too large for vector memory
    table = jax.eval_shape(lambda w: jm.Int(bits).encode(w, (-1,)), shape)
    look_up = jm.lift(lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"))
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    assert jm.memory(look_up, table, ids, device="tpu v5e:1x1").traffic < jm.nbytes(table) / 100
