"""Kernels give what the XLA forms give, and are chosen only where they can run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.core.stack_layer import StackLayer
from jaxmem.kernels.dispatch import by_platform, on_one_device
from jaxmem.kernels.pallas_block_sparse_matmul import block_sparse_product
from jaxmem.kernels.pallas_nm_matmul import nm_product
from jaxmem.kernels.pallas_packed_matmul import MAX_BLOCK_COLUMNS, grouped_product, supports


def by_kernel(x, leaf):
    return jit(lambda x, leaf: grouped_product(x, **leaf.on_chip(), interpret=True))(x, leaf)


def test_products_run_where_jit_is_switched_off():
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(64, 32), (1, 64)]))
    leaf = jm.Int(8).encode(w)
    with jax.disable_jit():
        found = jm.lift(jnp.matmul)(x, leaf)
    np.testing.assert_allclose(found, x @ jm.decode(leaf), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "bits, group, k, n, symmetric",
    [
        (4, 128, 256, 384, True),
        (3, 64, 192, 200, True),  # half a block of columns, a short block of rows
        (4, 128, 192, 40, False),  # a short group
        (7, 32, 128, 256, False),
        (8, 64, 128, 256, True),
        (8, 128, 128, 256, False),
        (2, 256, 512, 256, True),
        (4, None, 200, 264, True),
    ],
)
def test_the_grouped_kernel_is_the_product_with_the_decoded_weight(bits, group, k, n, symmetric):
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(k, n), (8, k)]))
    leaf = jm.Int(bits, group=group, symmetric=symmetric).encode(w)
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize(
    "codec", [jm.Int(8, group=64), jm.Int(5, group=64, symmetric=False), jm.Float("mxfp8")], ids=str
)
def test_the_grouped_kernel_reads_a_layer_in_its_stack(codec):
    w, x = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 128, 264), (8, 128)])
    )
    stack = codec.encode(w)
    sliced = StackLayer(stack, jnp.int32(1)).slice_of_stack()
    arguments = sliced.on_chip() | {"fields": stack.codes}
    found = grouped_product(x, **arguments, layer=jnp.int32(1), interpret=True)
    np.testing.assert_array_equal(found, by_kernel(x, sliced))


@pytest.mark.parametrize(
    "codec",
    [
        jm.Codebook("nf4"),
        jm.Codebook("fp4", group=64),
        jm.Float("e4m3", group=128),
        jm.Float("e5m2"),
        jm.Float("mxfp8"),
        jm.Float("mxfp4"),
        jm.Float("nvfp4"),
        jm.Planes(group=32),
        jm.KMeans(3, group=64),
    ],
    ids=str,
)
def test_the_kernel_reads_every_format_that_is_packed(codec):
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(192, 264), (8, 192)]))
    leaf = codec.encode(w)
    leaf = jm.at_bits(leaf, 4) if isinstance(codec, jm.Planes) else leaf
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5, atol=3e-4)


@pytest.mark.slow
def test_the_grouped_kernel_splits_long_rows_and_many_inputs():
    k = 2 * MAX_BLOCK_COLUMNS
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(k, 32), (130, k)]))
    leaf = jm.Int(4, group=512).encode(w)
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5, atol=1e-2)


def test_scales_below_the_least_normal_half_are_read_right():
    leaf = jm.Int(4, group=128).encode(jnp.full((128, 256), 1e-4) * jnp.arange(256.0)[None])
    assert 0 < leaf.scale[0, 1] < jnp.finfo(jnp.float16).tiny
    x = jnp.ones((8, 128))
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5)


@pytest.mark.parametrize(
    "k, group, fits", [(576, 64, True), (14336, 128, True), (576, 96, False), (9000, 128, False)]
)
def test_the_grouped_kernel_says_which_shapes_it_supports(k, group, fits):
    assert supports(k, group) == fits


@pytest.mark.parametrize("values", [(), (jm.Int(4, group=64, symmetric=False),), (jm.Int(8),)])
@pytest.mark.parametrize("pattern", [jm.NM(2, 4), jm.NM(1, 4)], ids=str)
def test_the_nm_kernel_is_the_product_with_the_decoded_weight(pattern, values):
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(1120, 264), (9, 1120)]))
    leaf = jm.Chain((pattern, *values)).encode(w)  # 280 groups: the last lanes are short
    by_kernel = jit(lambda x, leaf: nm_product(x, **leaf.on_chip(), interpret=True))
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5, atol=1e-3)


def test_the_block_sparse_kernel_is_the_product_with_the_decoded_weight():
    w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(700, 300), (200, 700)]))
    leaf = jm.Blocks(0.5, block=(128, 128)).encode(w)  # both sides end within a block
    by_kernel = jit(
        lambda x, a: block_sparse_product(x, a.values, a.places, 128, 300, interpret=True)
    )
    np.testing.assert_allclose(by_kernel(x, leaf), x @ jm.decode(leaf), rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize(
    "codec", [jm.NM(2, 4), jm.Chain((jm.NM(2, 4), jm.Int(4))), jm.Blocks(0.5, block=(128, 128))]
)
def test_sparse_forms_choose_their_kernel_for_one_chip(codec):
    w, x = jax.ShapeDtypeStruct((512, 256), "f4"), jax.ShapeDtypeStruct((256, 512), "f4")
    leaf = jax.eval_shape(codec.encode, w)
    exported = jax.export.export(jax.jit(jm.lift(jnp.matmul)), platforms=["tpu"])(x, leaf)
    assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.parametrize("axes", [(None, 0), (0, None)])
def test_a_choice_maps_like_the_function_it_chooses(axes):
    either = lambda x, w: on_one_device(jnp.matmul, jnp.matmul, x, w)
    x, w = (jnp.ones(s) if a is None else jnp.ones((2, *s)) for s, a in zip([(3, 4), (4, 5)], axes))
    np.testing.assert_array_equal(jax.vmap(either, axes)(x, w), jax.vmap(jnp.matmul, axes)(x, w))


def test_what_another_platform_would_run_is_not_traced():
    def elsewhere(x):
        raise AssertionError("it is traced")

    double = lambda x: by_platform(x, cpu=lambda x: x * 2, default=elsewhere, like=x)
    np.testing.assert_array_equal(jax.jit(double)(jnp.ones(3)), 2 * np.ones(3))
    np.testing.assert_array_equal(jax.vmap(double)(jnp.ones((2, 3))), 2 * np.ones((2, 3)))


@pytest.mark.parametrize("count", [1, 8])
def test_a_kernel_is_lowered_for_one_chip_only(count):
    leaf = jm.Int(4, group=128).encode(jnp.ones((256, 256)))
    mesh = Mesh(np.array(jax.devices()[:count]), "d")
    x = jax.device_put(jnp.ones((8, 256)), NamedSharding(mesh, P("d")))
    leaf = jax.device_put(leaf, NamedSharding(mesh, P()))
    exported = jax.export.export(jax.jit(jm.lift(jnp.matmul)), platforms=["tpu"])(x, leaf)
    assert ("tpu_custom_call" in exported.mlir_module()) == (count == 1)
