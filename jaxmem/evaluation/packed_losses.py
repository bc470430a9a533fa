"""document_losses: a model's loss of each text, computed in packed rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import FUNCTION, POSITIVE, TREE, takes
from ..data.packed_rows import PackedRows


@takes(apply=FUNCTION, params=TREE, batch=POSITIVE)
def document_losses(
    apply: Callable, params: Any, rows: PackedRows, *, batch: int = 8
) -> np.ndarray:
    """The mean cross entropy of each document (n,) f32, in nats a token that is to be learnt.

    It is that of the document alone: rows have segments, and no token sees another text. A document
    that is split over rows is the mean of its pieces' tokens.

    Args:
        apply: (params, ids, segments=, positions=) -> logits (rows, width, vocabulary), such as
            `Model.apply` of a decoder. Logits of `batch` rows are in memory.
        params: the parameters, which may be encoded if `apply` takes them.
        rows: documents in packed rows.
        batch: rows that are computed together.

    Raises:
        NotImplementedError: the model cannot keep texts of a row apart.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxmem as jm
        >>> rows = jm.data.PackedRows([[1, 2, 3], [3, 0]], 4)
        >>> uniform = lambda params, ids, segments, positions: jnp.zeros((*ids.shape, 4))
        >>> losses = jm.evaluation.document_losses(uniform, {}, rows, batch=2)
        >>> [round(float(loss), 3) for loss in losses]
        [1.386, 1.386]
    """

    @jax.jit
    def losses(params: Any, ids: Array, segments: Array, positions: Array) -> Array:
        logits = apply(params, ids, segments=segments, positions=positions)[:, :-1]
        chosen = jnp.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) - chosen.astype(jnp.float32)

    sums, counts = np.zeros((2, len(rows.documents)))
    for at in range(0, len(rows), batch):
        chosen = [rows[min(r, len(rows) - 1)] for r in range(at, at + batch)]  # one shape for all
        fields = {name: np.stack([row[name] for row in chosen]) for name in chosen[0]}
        mask = fields.pop("mask")[:, 1:]
        found = np.asarray(losses(params, **fields), np.float64)
        for i in range(min(batch, len(rows) - at)):
            documents = np.array([d for d, *_ in rows.packing.row(at + i)])
            of_token = documents[fields["segments"][i, 1:][mask[i]] - 1]
            np.add.at(sums, of_token, found[i][mask[i]])
            np.add.at(counts, of_token, 1)
    return (sums / np.maximum(counts, 1)).astype(np.float32)
