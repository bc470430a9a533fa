"""The compiled product of a prompt with kept blocks is that with the decoded weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.cpu_kernels.kept_blocks import kept_blocks_product

pytestmark = pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)

decoded = lambda x, leaf: jnp.matmul(x, leaf.rows().T, precision="highest")
product = functools.partial(kept_blocks_product, otherwise=decoded)


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def blocks(codec, block):
    return jm.Chain((jm.Blocks(0.5, block=block), codec))


@pytest.mark.parametrize(
    ("codec", "block", "m", "k", "n"),
    [
        (jm.Int(4), (32, 32), 40, 300, 200),  # blocks beyond the last input, rows beyond the last
        (jm.Int(8), (32, 256), 500, 512, 96),
        (jm.Int(5, group=8, symmetric=False), (64, 24), 97, 700, 130),
        (jm.Int(3, group=16), (96, 200), 3, 640, 64),
    ],
    ids=str,
)
def test_the_compiled_product_is_that_with_the_decoded_weight(codec, block, m, k, n):
    leaf, x = blocks(codec, block).encode(random(k, n)), random(m, k)
    run = jax.jit(product)
    rows, got = jax.device_get((jax.jit(lambda leaf: leaf.rows())(leaf), run(x, leaf)))
    bound = np.abs(x) @ np.abs(rows).T * 2.0**-20
    assert (np.abs(got - np.asarray(x) @ rows.T) <= bound).all()


def test_a_prompt_meets_blocks_and_no_decoded_weight():
    leaf, x = blocks(jm.Int(4), (32, 32)).encode(random(2048, 1024)), random(100, 2048)
    run = jax.jit(jm.lift(jnp.matmul)).lower(x, leaf)
    assert "jaxmem_block_rows" in run.as_text()
    assert run.compile().memory_analysis().temp_size_in_bytes < 2048 * 1024


def test_a_prompt_has_the_slope_of_the_decoded_weight():
    leaf, x = blocks(jm.Int(4), (32, 32)).encode(random(256, 64)), random(100, 256)
    slope = jax.grad(lambda x: (jm.lift(jnp.matmul)(x, leaf) ** 2).sum())(x)
    rows = np.asarray(leaf.rows())
    expected = 2 * (np.asarray(x) @ rows.T) @ rows
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)


def test_strips_of_other_rows_are_decoded():
    leaf, x = blocks(jm.Int(4), (8, 32)).encode(random(256, 64)), random(100, 256)
    assert "jaxmem_block_rows" not in jax.jit(product).lower(x, leaf).as_text()
