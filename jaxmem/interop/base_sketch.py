"""sketch: some numbers of a base model's weights, by which an adapter knows its base again.

A hash would say that a base in 4 bits is another one than the dense base it was made from. So the
record holds numbers of some weights, and a base is the same if its numbers point the same way.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.paths import is_whole, paths
from ..io.json_fields import read_object
from ..models.model import Model

FILE = "jaxmem_base.json"
LEAST_COSINE = 0.5  # of numbers in 2 bits to the dense ones it is about 0.9; of other weights 0
_WEIGHTS, _ROWS, _COLUMNS = 8, 8, 32  # of a sketch


def weights_of(model: Model) -> dict[str, Any]:
    """The weights of a model by path, without those that are shapes only."""
    if not isinstance(model.tensors, Mapping):  # a Flax module: there are no weights yet
        return {}
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
    named = dict(zip(paths(model.tensors), leaves))
    return {path: x for path, x in named.items() if not any(map(is_shape, jax.tree.leaves(x)))}


def sketch(leaves: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """{path: {"shape", "numbers"}}: the first numbers of up to 8 of the weights `names`.

    Example:
        >>> import jaxmem as jm
        >>> w = np.arange(64.0, dtype="f4").reshape(8, 8)
        >>> one, two = (sketch({"w": x}, ["w"])["w"]["numbers"] for x in (w, jm.Int(8).encode(w)))
        >>> one[:3], len(one), [round(x) for x in two[:3]]
        ([0.0, 8.0, 16.0], 64, [0, 8, 16])
    """
    step = max(1, len(names) // _WEIGHTS)
    return {
        path: {
            "shape": list(leaves[path].shape),
            "numbers": [round(float(x), 6) for x in _numbers(leaves[path])],
        }
        for path in names[::step][:_WEIGHTS]
    }


def check_base(folder: pathlib.Path, model: Model) -> None:
    """Refuses a base that an adapter's record does not know; without a record any base is right.

    Raises:
        ValueError: weights have other shapes or numbers than the adapter was trained on.
    """
    leaves, source = weights_of(model), model.source
    if not (folder / FILE).is_file() or not leaves:
        return
    for path, said in read_object(folder / FILE).items():
        leaf = leaves.get(path)
        shape = None if leaf is None else list(leaf.shape)
        if shape != said["shape"]:
            raise ValueError(
                f"{folder} is an adapter of another base: its {path} has the shape "
                f"{said['shape']}, that of {source} {shape}"
            )
        ours, theirs = np.asarray(_numbers(leaf)), np.asarray(said["numbers"])
        size = np.linalg.norm(ours) * np.linalg.norm(theirs)
        cosine = float(ours @ theirs / size) if size else 1.0
        if cosine < LEAST_COSINE:
            raise ValueError(
                f"{folder} is an adapter of another base: the numbers of its {path} and of "
                f"{source}'s have a cosine of {cosine:.2f}, expected about 1"
            )


def _numbers(leaf: Any) -> np.ndarray:
    """The first columns of the first rows of the first layer's matrix (n, k), flat, in f32."""
    if is_encoded(leaf):
        for _ in leaf.stack:
            leaf = leaf.layer(0) if is_encoded(leaf) else leaf[0]
        if isinstance(leaf, MatrixLeaf):
            rows = leaf.slice_rows(0, min(_ROWS, leaf.fold.n)).rows()
            return np.asarray(rows[:, :_COLUMNS], np.float32).ravel()
        leaf = leaf.decode() if is_encoded(leaf) else leaf
    leaf = leaf.load() if hasattr(leaf, "load") else leaf
    first = leaf[(0,) * (leaf.ndim - 2)][:_COLUMNS, :_ROWS]
    return np.asarray(first, np.float32).T.ravel()
