"""Where a card's numbers come from: hashes of weights and texts, forms of the weights, versions."""

import hashlib
import importlib.metadata
import platform
from collections import Counter
from typing import Any

import jax
import numpy as np

from ..core.leaf import is_encoded


def weights_sha256(params: Any) -> str:
    """The hash of a tree of weights: of each array's path, dtype, shape and bytes.

    Example:
        >>> a, b = {"w": np.zeros(3)}, {"w": np.zeros((3, 1))}
        >>> weights_sha256(a) == weights_sha256({"w": np.zeros(3)}), weights_sha256(a) == weights_sha256(b)
        (True, False)
    """  # noqa: E501
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def forms(params: Any) -> dict[str, int]:
    """{the form of a weight: how many weights have it}; a dense one's form is its dtype.

    Example:
        >>> forms({"a": np.zeros(3), "b": np.zeros(3)})
        {'float64': 2}
    """
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    return dict(Counter(type(x).__name__ if is_encoded(x) else str(x.dtype) for x in leaves))


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("jaxmem", "jax", "jaxlib", "flax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "backend": jax.default_backend(), **found}
