"""Fitted: what `fit` made, and the file that it is written to."""

import dataclasses
import math
import os
from typing import Any

import jax

from ..core.byte_counts import nbytes as count_bytes
from ..core.leaf import is_encoded
from ..io.checkpoint import save
from ..models.model import Model
from .plan import Plan
from .reporting import Report


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` made.

    `model` runs on the encoded weights: a `Model` whose `params` are encoded, or the pair
    (lifted function, encoded params) of a bare function. `params` are the encoded params, `plan`
    says the codec of each, `report` the bytes and errors of each. `done` records the work as plain
    data: the tokens that were read, the steps of tuning, the KL divergences that were compared;
    it is empty where no data was given. `file_nbytes` is the size of the file that an export to the
    `target` of the options writes; None where that is no file format. `speed` is how many times as
    fast as the dense weights' the products of a token are, as `jm.speeds` predicts of a `target`
    that is a platform; None without one. Below 1 the result is slower than dense.
    """

    model: Any
    plan: Plan
    params: Any
    report: Report
    done: dict
    file_nbytes: int | None = None
    speed: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded params."""
        return count_bytes(self.params)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the result; it appears whole or not at all.

        A `Model` becomes a directory that `jm.models.load` and every command read, bare params one
        file that `jm.load` reads.

        Raises:
            ValueError: `path` exists and was not written by jaxmem.
        """
        if isinstance(self.model, Model):
            self.model.save(path, self.params)
        else:
            save(path, self.params)

    def __str__(self) -> str:
        leaves = jax.tree.leaves(self.params, is_leaf=is_encoded)
        weights = sum(math.prod(x.shape) for x in leaves)
        bits = 8 * self.nbytes / max(weights, 1)
        return f"{weights:,} weights in {self.nbytes:,} bytes, {bits:.2f} bits each"
