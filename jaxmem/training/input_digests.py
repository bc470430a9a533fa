"""Digests of what a run reads, so that a run that is continued reads the same."""

import hashlib
from typing import Any

import jax
import numpy as np


def tree_sha256(tree: Any) -> str:
    """The SHA-256 of a tree's paths, shapes, dtypes and bytes; an encoded leaf by its codes.

    Example:
        >>> a = tree_sha256({"w": np.arange(3)})
        >>> a == tree_sha256({"w": np.arange(3)}), a == tree_sha256({"v": np.arange(3)})
        (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        x = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {np.shape(leaf)}\n".encode())
        digest.update(x.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def first_batch_sha256(batches: Any) -> str | None:
    """The SHA-256 of the batch that an iterator gives next, which it gives again afterwards.

    None with many processes: each of them reads other rows.
    """
    if jax.process_count() > 1:
        return None
    state = batches.state()
    digest = tree_sha256(next(batches))
    batches.restore(state)
    return digest
