"""Scales of blocks of rows are divided with the rows, where no block is split."""

import jax.numpy as jnp
import pytest

from jaxmem.codecs.scale_tables import RowBlockScales


@pytest.mark.parametrize(
    "block, n, axis, want",
    [(2, 8, -1, ((4, 2), 4)), (4, 8, -1, ((4, 1), 4)), (8, 8, -1, ((4, 1), 4)),
     (2, 8, -2, ((2, 4), 8))],
)  # fmt: skip
def test_a_shard_has_whole_blocks(block, n, axis, want):
    shard = RowBlockScales(jnp.ones((4, n // block)), block, n).shard_shape(axis, 2)
    assert (shard.values.shape, shard.n) == want


def test_a_shard_of_a_part_of_a_block_is_not_made():
    assert RowBlockScales(jnp.ones((4, 3)), 4, 12).shard_shape(-1, 2) is NotImplemented
