"""The compiled products of packed integers are those with the decoded weight."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.codecs.dynamic_quantization import rounded
from jaxmem.core.lifting import lift_inference
from jaxmem.cpu_kernels.integer_rows import _call, integer_rows_product, rounded_rows_product

pytestmark = pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)

decoded = lambda x, leaf: x.astype(jnp.float32) @ leaf.rows().T
product = functools.partial(integer_rows_product, otherwise=decoded)


def random_leaf(bits, n, k, group=None, symmetric=True, stack=()):
    w = np.random.default_rng(bits).standard_normal((*stack, k, n), np.float32)
    return jm.Int(bits, group=group, symmetric=symmetric).encode(jnp.asarray(w))


def random_x(*shape):
    return jnp.asarray(np.random.default_rng(9).standard_normal(shape, np.float32))


@jax.jit
def rows_and_codes(leaf):
    """The decoded rows in f32, and what the codes of a leaf with a zero point add to the bound."""
    return leaf.rows(), 2.0**leaf.bits * leaf.scales().mT.max(-1) if leaf.zero is not None else 0.0


def assert_is_the_product(y, x, leaf):
    """The bound that `integer_rows_product` states, and 2^-20 for its sums in f32."""
    x, (rows, codes) = np.asarray(x, np.float32), jax.device_get(rows_and_codes(leaf))
    size = np.abs(x).max(-1, keepdims=True, initial=0)
    largest = (np.abs(rows).sum(-1) + codes * x.shape[-1])[None]
    difference = np.abs(np.asarray(y) - x @ rows.T)
    assert (difference <= size * largest * 2.0**-20).all()


@pytest.mark.parametrize(  # the library's own test has more shapes
    "bits, m, n, k, group, symmetric",
    [
        (8, 1, 13, 70, None, True),
        (5, 2, 9, 96, 40, False),
        (3, 33, 1, 1, None, True),
        (4, 500, 41, 150, 32, False),
    ],
    ids=["a row", "a short last group", "one weight", "a prompt"],
)
def test_the_compiled_product_is_that_with_the_decoded_weight(bits, m, n, k, group, symmetric):
    leaf, x = random_leaf(bits, n, k, group, symmetric), random_x(m, k)
    assert_is_the_product(product(x, leaf), x, leaf)


@pytest.mark.parametrize("bits, group", [(8, None), (4, 64), (4, 32)])
def test_what_a_row_among_many_gives_does_not_depend_on_its_place(bits, group):
    leaf, x = random_leaf(bits, 24, 128, group, False), random_x(70, 128)  # not whole panels
    y = jax.jit(_call)(x, leaf)
    assert_is_the_product(y, x, leaf)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(jax.jit(_call)(x[order], leaf), y[order])


@pytest.mark.parametrize("bits, group", [(8, None), (5, 40), (4, 32)])
@pytest.mark.parametrize("rows", [8, 70])
def test_rounded_rows_are_those_that_dynamic_rounds(bits, group, rows):
    leaf, x = random_leaf(bits, 21, 150, group, False), random_x(rows, 150) + 0.3
    y = rounded_rows_product(x, leaf, lambda x, leaf: x @ leaf.rows().T + jnp.nan)
    expected = rounded(x, jm.Dynamic(jm.Int(bits)).encode(jnp.ones((150, 21))))
    np.testing.assert_allclose(y, expected @ leaf.rows().T, rtol=1e-5, atol=1e-4)


def test_a_row_that_is_not_finite_is_rounded_to_nan_and_a_row_of_zeros_to_zeros():
    leaf, x = random_leaf(8, 8, 32), random_x(9, 32).at[1, 3].set(jnp.inf).at[2].set(0.0)
    y = rounded_rows_product(x, leaf, decoded)
    assert jnp.isnan(y[1]).all() and (y[2] == 0).all() and jnp.isfinite(y[3:]).all()


@pytest.mark.parametrize("rows, group", [(2, 16), (600, 16), (2, 32)])
def test_a_matmul_calls_the_library(rows, group):
    run = jax.jit(jm.lift(jnp.matmul)).lower(random_x(rows, 32), random_leaf(4, 8, 32, group))
    assert "jaxmem_integer_rows" in run.as_text()


@pytest.mark.parametrize("stacks", [1, 2], ids=["a stack", "two stacks under vmap"])
def test_a_layer_is_read_in_its_stack(stacks):
    leaf = random_leaf(4, 32, 32, 16, stack=(stacks, 3))
    scan = lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    run, x = jax.jit(jax.vmap(lift_inference(scan), (0, None))), random_x(2, 32)
    assert "in_stack = true" in run.lower(leaf, x).as_text()
    expected = jnp.stack([scan(jm.decode(leaf)[i], x) for i in range(stacks)])
    np.testing.assert_allclose(run(leaf, x), expected, 1e-4, 1e-4)


def test_an_exported_program_calls_no_library_that_another_machine_lacks():
    exported = jax.export.export(jax.jit(jm.lift(jnp.matmul)))(
        random_x(1, 32), random_leaf(4, 8, 32)
    )
    assert "jaxmem_integer_rows" not in exported.mlir_module()


def test_x_may_be_bfloat16_and_scales_may_be_float32():
    leaf, x = random_leaf(5, 16, 64, 32), random_x(1, 64).astype(jnp.bfloat16)
    wide = jax.tree.map(lambda a: a.astype("f4") if a.dtype == jnp.float16 else a, leaf)
    np.testing.assert_array_equal(product(x, wide), product(x, leaf))
    assert_is_the_product(product(x, leaf), x.astype(jnp.float32), leaf)


def test_subnormal_scales_are_not_lost():
    leaf = jm.Int(4, group=32).encode(jnp.full((32, 8), 1e-4))
    assert 0 < leaf.scale[0, 0] < jnp.finfo(jnp.float16).tiny
    np.testing.assert_allclose(
        product(jnp.ones((1, 32)), leaf), decoded(jnp.ones((1, 32)), leaf), 1e-5
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_row_with_a_number_that_is_not_finite_gives_nan_and_no_other_row(bad):
    leaf, x = random_leaf(4, 8, 32), random_x(2, 32).at[1, 3].set(bad)
    y = product(x, leaf)
    assert_is_the_product(y[:1], x[:1], leaf)
    assert jnp.isnan(y[1]).all()


@pytest.mark.parametrize("x_axis, leaf_axis", [(0, 0), (0, None), (None, 0)])
def test_vmap_maps_x_or_the_weight_or_both(x_axis, leaf_axis):
    leaf = random_leaf(3, 16, 40, 16, False, stack=(3,) if leaf_axis == 0 else ())
    x = random_x(*((3,) if x_axis == 0 else ()), 1, 40)
    y = jax.vmap(product, (x_axis, leaf_axis))(x, leaf)
    for i in range(3):
        part = leaf if leaf_axis is None else jax.tree.map(operator.itemgetter(i), leaf)
        np.testing.assert_array_equal(y[i], product(x if x_axis is None else x[i], part))


def test_maps_nest():
    leaf, x = random_leaf(4, 8, 32, stack=(2,)), random_x(3, 2, 1, 32)
    y = jax.vmap(jax.vmap(product), (0, None))(x, leaf)
    expected = jax.vmap(jax.vmap(decoded), (0, None))(x, leaf)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_layers_are_scanned_over():
    leaf, x = random_leaf(4, 32, 32, 16, stack=(3,)), random_x(1, 32)
    scan = lambda step: jax.lax.scan(lambda x, w: (step(x, w), None), x, leaf)[0]
    np.testing.assert_allclose(scan(product), scan(decoded), rtol=1e-4, atol=1e-3)


def test_the_gradient_is_that_of_the_decoded_weight():
    leaf, x = random_leaf(4, 16, 32), random_x(1, 32)
    multiply = jm.lift(lambda x, w: jnp.square(x @ w).sum())
    expected = jax.grad(lambda x: jnp.square(x @ jm.decode(leaf)).sum())(x)
    np.testing.assert_allclose(jax.grad(multiply)(x, leaf), expected, rtol=1e-4, atol=1e-4)


def test_a_sharded_product_is_left_to_xla_and_shard_map_calls_the_library():
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    leaf, x = random_leaf(4, 16, 32), random_x(1, 32)
    rows = NamedSharding(mesh, P())
    over_devices = jax.jit(product, in_shardings=(rows, rows))
    assert "jaxmem_integer_rows" not in over_devices.lower(x, leaf).as_text()
    np.testing.assert_allclose(over_devices(x, leaf), product(x, leaf), rtol=1e-4, atol=1e-4)

    specs = dict(in_specs=(P(), P()), out_specs=P(), check_vma=False)
    by_device = jax.jit(jax.shard_map(product, mesh=mesh, **specs))
    assert "jaxmem_integer_rows" in by_device.lower(x, leaf).as_text()
    np.testing.assert_array_equal(by_device(x, leaf), product(x, leaf))


def test_threads_share_a_large_product():
    leaf, x = random_leaf(4, 2048, 600, 128, False), random_x(1, 600)
    assert_is_the_product(product(x, leaf), x, leaf)


@pytest.mark.parametrize(
    ("codec", "rows", "is_compiled"),
    [
        (jm.Int(4, group=10, symmetric=False), 2, True),  # groups cross the borders of blocks
        (jm.Int(8), 1, True),
        (jm.Int(8), 17, False),  # more rows of x than of a block
    ],
)
def test_kept_blocks_of_integers_are_multiplied_as_they_are_stored(codec, rows, is_compiled):
    w, x = random_x(70, 40), random_x(rows, 70)  # neither 16 outputs nor 16 inputs divide it
    leaf = jm.Chain((jm.Blocks(0.4, block=(16, 16)), codec)).encode(w)
    run = jax.jit(jm.lift(jnp.matmul))
    expected = jnp.matmul(x, jm.decode(leaf), precision="highest")
    np.testing.assert_allclose(run(x, leaf), expected, rtol=1e-4, atol=1e-4)
    assert ("jaxmem_integer_rows" in run.lower(x, leaf).as_text()) == is_compiled


@pytest.mark.parametrize(
    ("codec", "rows", "is_compiled"),
    [
        (jm.Int(4, group=10), 2, True),
        (jm.Int(8), 1, True),
        (jm.Int(4, group=9), 1, False),  # a group begins inside a pattern
        (jm.Int(4, symmetric=False), 1, False),
    ],
)
def test_two_of_four_integers_are_multiplied_as_they_are_stored(codec, rows, is_compiled):
    leaf = jm.Chain((jm.NM(2, 4), codec)).encode(random_x(72, 37))
    x, run = random_x(rows, 72), jax.jit(jm.lift(jnp.matmul))
    expected = jnp.matmul(x, jm.decode(leaf), precision="highest")
    np.testing.assert_allclose(run(x, leaf), expected, rtol=1e-4, atol=1e-4)
    assert ("jaxmem_integer_rows" in run.lower(x, leaf).as_text()) == is_compiled


@pytest.mark.parametrize("codec", [jm.Affine(8, group=16), jm.DoubleQuant(jm.Affine(4, group=7))])
def test_codes_with_offsets_are_multiplied_as_they_are_stored(codec):
    leaf, x, run = codec.encode(random_x(40, 37)), random_x(2, 40), jax.jit(jm.lift(jnp.matmul))
    expected = jnp.matmul(x, jm.decode(leaf), precision="highest")
    np.testing.assert_allclose(run(x, leaf), expected, rtol=1e-4, atol=1e-4)
    assert "has_low = true" in run.lower(x, leaf).as_text()


@pytest.mark.parametrize("bits, scale_bits", [(2, 4), (3, 6), (4, 6), (6, 8)])
def test_scales_that_are_codes_are_decoded_by_the_library(bits, scale_bits):
    stack, x = jm.KQuant(bits).encode(random_x(2, 300, 37)), random_x(2, 300)
    body = lambda x: lambda y, w: (y + x @ w, None)
    run = jax.jit(lift_inference(lambda w, x: lax.scan(body(x), jnp.zeros((2, 37)), w)[0]))
    expected = jnp.matmul(x, jm.decode(stack).sum(0), precision="highest")
    np.testing.assert_allclose(run(stack, x), expected, rtol=1e-4, atol=1e-4)
    assert f"scale_bits = {scale_bits} : i64" in run.lower(stack, x).as_text()


def test_an_array_that_is_read_often_moves_to_large_pages_and_stays_what_it_is():
    leaf, x = random_leaf(8, 1024, 5000), random_x(1, 5000)  # 5 MB, of which 2 to 4 are whole pages
    expected = product(x, leaf)
    for _ in range(70):
        np.testing.assert_array_equal(product(x, leaf), expected)
