"""search_by_groups: `Search` of small weights of any shape and bits, by one program.

Each group of a row is searched by itself. So the groups of a weight are the rows of a matrix,
which is padded with zeros and goes through the program some rows at a time; the bits are an
argument of it. NumPy makes the matrix and packs the codes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..codecs import Int
from ..codecs.host_packing import pack_on_host
from ..codecs.integer import IntArray, nearest_codes
from ..core.fold import Fold
from ..core.padded import block_of_sums
from ..solvers import Search
from ..solvers.range_search import LEAST_ENERGY, best_range
from .quick_programs import QUICK_AND_VECTORIZED

SHORTEST_GROUP = 128  # shorter groups are padded to it, so that those of 64 and 128 share a program
RUN_WEIGHTS = 2**14  # weights that one run of the program searches


def is_search(codec: Any) -> bool:
    """Whether `search_by_groups` takes the codec: no class of the user, which may differ."""
    return type(codec) is Search and type(codec.codec) is Int


def search_by_groups(codec: Search, axes: tuple[int, ...], w: Any) -> tuple[IntArray, bool, bool]:
    """The leaf of `codec.encode(w, axes)`, and whether the weight and the scales are finite.

    Example:
        >>> import jaxmem as jm
        >>> leaf, *finite = search_by_groups(jm.Search(jm.Int(4)), (-2,), jnp.ones((40, 24)))
        >>> leaf.shape, jm.nbytes(leaf), finite
        ((40, 24), 528, [True, True])
    """
    inner, (matrix, fold) = codec.codec, Fold.from_weight(np.asarray(w), axes)
    *stack, n, k = matrix.shape
    group = min(inner.group or k, k)
    groups = -(-k // group)
    length = max(SHORTEST_GROUP, 1 << (group - 1).bit_length())
    step = max(1, RUN_WEIGHTS // length)
    whole = np.zeros((*stack, n, groups * group), np.float32)
    whole[..., :k] = matrix
    count = whole.size // group
    rows = np.zeros((-(-count // step) * step, length), np.float32)
    rows[:count, :group] = whole.reshape(count, group)
    options = np.int32(inner.bits), block_of_sums(inner.group), inner.symmetric
    parts = [_search(rows[i : i + step], *options) for i in range(0, len(rows), step)]
    scale, zero, codes, *finite = map(np.stack, zip(*parts))
    by_group = lambda a: a.reshape(-1)[:count].reshape(*stack, n, groups).mT
    codes = codes.reshape(-1, length)[:count, :group].reshape(whole.shape)[..., :k]
    zeros = None if inner.symmetric else pack_on_host(by_group(zero), inner.bits, -1)
    fields, dtype = pack_on_host(codes, inner.bits, -2), jnp.result_type(w.dtype)
    leaf = IntArray(fields, by_group(scale), zeros, inner.bits, group, fold, dtype)
    return jax.tree.map(jnp.array, leaf), *(bool(a.all()) for a in finite)


@functools.partial(jax.jit, static_argnums=(2, 3), compiler_options=QUICK_AND_VECTORIZED)
def _search(
    groups: Array, bits: Array, block: int, symmetric: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """(scale, zero, codes, whether the weights are finite, and the scales) of groups (m, group).

    `block` is that of the sums of their errors.
    """
    codec, weight = Int(8, group=block, symmetric=symmetric), jnp.full((1, 1, 1), 1 + LEAST_ENERGY)
    scale, zero = best_range(codec, groups[:, None], weight, bits)
    codes = nearest_codes(groups, scale, zero, bits, symmetric).astype(jnp.uint8)
    finite = jnp.isfinite(groups).all(), jnp.isfinite(scale).all()
    return scale, zero.astype(jnp.uint8), codes, *finite
