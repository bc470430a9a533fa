"""flip_bits: a tree of weights with random bits of its arrays flipped, as a worn memory does.

The arrays of an encoded leaf are of three parts: codes, masks (places and bits that say where kept
weights stand), and scales, which are its floats. A dense weight has the part "weights".
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import KEY, NAMES, TREE, takes
from ..core.leaf import is_encoded

PARTS = ("codes", "scales", "masks", "weights")
_CODES = frozenset({"codes", "planes"})


@takes(tree=TREE, key=KEY, parts=NAMES)
def flip_bits(tree: Any, rate: float, key: Array, *, parts: Sequence[str] = PARTS) -> Any:
    """The tree with each bit of the arrays of `parts` flipped with the probability `rate`.

    The same key flips the same bits. An array of numbers of less than a byte has the bits of its
    numbers, and no others.

    Raises:
        ValueError: `rate` is not from 0 to 1, or a part is none of `PARTS`.
        TypeError: an argument has another type; the key is none of `jax.random.key`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.ones((4, 8)))
        >>> flipped = flip_bits(leaf, 1.0, jax.random.key(0), parts=["codes"])
        >>> codes, scales = zip(*map(jax.tree.leaves, (leaf, flipped)))
        >>> bool((codes[1] == ~codes[0]).all()), bool((scales[1] == scales[0]).all())
        (True, True)
    """
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts is {parts!r}, expected some of {', '.join(PARTS)}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}, expected 0 to 1")
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    flip = lambda path, x, leaf: _flipped(x, rate, draw) if _part(path, leaf) in parts else x

    def change(leaf: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: flip(path, x, leaf), leaf)

    return jax.tree.map(change, tree, is_leaf=is_encoded)


def parts_of(tree: Any) -> tuple[str, ...]:
    """Which of `PARTS` the tree has.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> parts_of({"w": jm.Int(8).encode(jnp.ones((4, 8))), "b": jnp.ones(8)})
        ('codes', 'scales', 'weights')
    """
    found = set()
    for leaf in jax.tree.leaves(tree, is_leaf=is_encoded):
        paths = jax.tree_util.tree_leaves_with_path(leaf)
        found |= {_part(path, leaf) for path, _ in paths}
    return tuple(part for part in PARTS if part in found)


def _part(path: tuple, leaf: Any) -> str:
    """The part of an array at a path inside a leaf."""
    if not is_encoded(leaf):
        return "weights"
    names = [str(getattr(entry, "name", "")) for entry in path]
    if _CODES.intersection(names):
        return "codes"
    return "masks" if type(leaf).integer_fields.intersection(names) else "scales"


def _flipped(x: Any, rate: float, draw: np.random.Generator) -> Array:
    """The array with each of its bits flipped with the probability `rate`."""
    array = np.ascontiguousarray(jax.device_get(x))
    is_bool = array.dtype == bool
    bits = 1 if is_bool else _bits(array.dtype)
    count = draw.binomial(bits * array.size, rate) if array.size else 0
    if not count:
        return x
    at = draw.choice(bits * array.size, count, replace=False) if rate < 1 else None
    at = np.arange(bits * array.size) if at is None else at
    width = max(bits // 8, 1)
    # Little-endian bytes: bit b of a number is in its byte b // 8.
    raw = array.reshape(-1).view(np.uint8).copy()
    number, bit = np.divmod(at, bits)
    np.bitwise_xor.at(raw, number * width + bit // 8, (1 << (bit % 8)).astype(np.uint8))
    if bits in (2, 4) and jnp.issubdtype(array.dtype, jnp.signedinteger):
        raw = ((raw << (8 - bits)).view(np.int8) >> (8 - bits)).view(np.uint8)  # its sign again
    return jnp.asarray(raw.view(array.dtype).reshape(array.shape))


def _bits(dtype: Any) -> int:
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return info(dtype).bits
