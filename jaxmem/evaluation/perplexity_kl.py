"""evaluate: perplexity exp(mean NLL), and KL(dense ‖ model) to the dense original.

The protocol: the text is tokenized in one call, without BOS, and cut into non-overlapping windows
of 1,024 tokens with 1,023 predictions each. KL and top-1 agreement are means over the same
predictions. A 95 % interval is the t-interval of the windows' means, so it needs two windows; for
a perplexity its ends are exponentiated.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import OPTIONAL_TREE, Kind, takes
from ..core.byte_counts import nbytes
from ..parallel.sharding_constraints import whole
from ..train.output_losses import kl_divergence
from .confidence import Estimate
from .result import Evaluation

_REFERENCE = Kind(
    "a pair (apply, params), or None",
    lambda x: x is None or (isinstance(x, tuple | list) and len(x) == 2 and callable(x[0])),
)


@takes(params=OPTIONAL_TREE, reference=_REFERENCE)
def evaluate(
    apply: Callable[[Any, Array], Array],
    params: Any,
    ids: Any,
    *,
    reference: tuple[Callable[[Any, Array], Array], Any] | None = None,
    window: int = 1024,
    windows: int | None = None,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Perplexity of a language model on a text, and its distance from a dense `reference`.

    Both sets of logits of one batch, 2 · batch · window · vocab · 4 bytes, are in memory at once,
    and nothing else of that size.

    Args:
        apply: `apply(params, ids)` returns logits (batch, window, vocab). For encoded params it
            must be lifted.
        params: the weights, dense or encoded.
        ids: the text as one list of token ids.
        reference: the dense `(apply, params)`, for KL and agreement.
        window: tokens in a window.
        windows: how many windows from the start of the text are used; None for all whole windows.
        batch: windows in a batch.
        progress: `progress(done, windows)` is called after each batch.

    Raises:
        ValueError: the text is shorter than the windows asked for, or has a token that the model
            does not know; `window`, `windows` or `batch` is too small; `apply` gives no logits.
        TypeError: `ids` is not a one-dimensional list of integers.

    Example:
        >>> import jax.numpy as jnp
        >>> unigram = lambda params, ids: jnp.broadcast_to(params, (*ids.shape, 4))
        >>> print(evaluate(unigram, jnp.zeros(4), [0, 1, 2, 3] * 8, window=8).perplexity)
        4  [4, 4]
    """
    text = windows_of(ids, window, windows)
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    count = len(text)
    row_shape = jax.ShapeDtypeStruct((batch, window), np.int32)
    vocab = _vocabulary(jax.eval_shape(apply, params, row_shape), row_shape.shape)
    if text.max() >= vocab or text.min() < 0:  # before they are int32, which would wrap them
        raise ValueError(f"ids reach {text.min()}..{text.max()}, expected 0..{vocab - 1}")
    text = text.astype(np.int32)
    batches = [np.resize(text[i : i + batch], (batch, window)) for i in range(0, count, batch)]
    forward = jax.jit(apply).lower(params, batches[0]).compile()
    dense = jax.jit(reference[0]) if reference else None

    def step(tokens):  # a function, so that a batch's logits are freed when it returns
        target = jax.block_until_ready(dense(reference[1], tokens)) if dense else None
        start = time.perf_counter()
        logits = jax.block_until_ready(forward(params, tokens))
        seconds.append((time.perf_counter() - start) / tokens.size)
        return jax.device_get(_score(logits, target, tokens))

    sums, seconds = [], []
    for i, tokens in enumerate(batches):
        sums.append(step(tokens))
        if progress:
            progress(min(count, (i + 1) * batch), count)
    means = {k: np.concatenate([s[k] for s in sums])[:count] for k in sums[0]}
    upper = {"agreement": 1.0}
    estimates = {k: Estimate.of(v, 0.0, upper.get(k, math.inf)) for k, v in means.items()}
    for name in {"perplexity", "dense_perplexity"} & estimates.keys():
        estimates[name] = estimates[name].exp()
    return Evaluation(
        tokens=count * (window - 1),
        resident=nbytes(params),
        peak=peak_of(forward),
        seconds_per_token=float(np.median(seconds[1:])) if len(seconds) > 1 else None,
        kl_by_window=tuple(map(float, means["kl"])) if "kl" in means else None,
        **estimates,
    )


@jax.jit
def _score(logits: Array, dense: Array | None, ids: Array) -> dict[str, Array]:
    """Means over each window, (batch,)."""
    return whole(jax.tree.map(lambda x: x.mean(axis=1), token_scores(logits, dense, ids)))


def token_scores(logits: Array, dense: Array | None, ids: Array) -> dict[str, Array]:
    """The scores of each prediction, (batch, window - 1), by the names that `Evaluation` has.

    `logits` and `dense` are (batch, window, vocab), `ids` (batch, window). A few positions are
    scored at a time, so that logits are not copied.
    """
    if dense is not None and dense.shape != logits.shape:
        raise ValueError(f"the reference has logits {dense.shape}, the model {logits.shape}")

    def position(row):
        x, y, target = row
        log_q = jax.nn.log_softmax(x.astype(jnp.float32))
        scores = {"perplexity": -log_q[target]}
        if y is not None:
            log_p = jax.nn.log_softmax(y.astype(jnp.float32))
            scores["dense_perplexity"] = -log_p[target]
            scores["kl"] = kl_divergence(y, x)
            scores["agreement"] = (x.argmax() == y.argmax()).astype(jnp.float32)
        return scores

    flat = lambda x: x.reshape(-1, x.shape[-1])
    rows = (*jax.tree.map(flat, (logits, dense)), jnp.roll(ids, -1, axis=1).reshape(-1))
    scores = jax.lax.map(position, rows, batch_size=16)
    # After the last token of a window there is nothing to predict.
    return jax.tree.map(lambda x: x.reshape(ids.shape)[:, :-1], scores)


def _vocabulary(logits: Any, rows: tuple[int, int]) -> int:
    """The last axis of logits of ids (batch, window); refuses what are no such logits."""
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 3 or shape[:2] != rows:
        got = type(logits).__name__ if shape is None else shape
        wanted = f"({rows[0]}, {rows[1]}, vocabulary)"
        raise ValueError(f"apply gives {got} of ids {rows}, expected logits {wanted}")
    return shape[2]


def windows_of(ids: Any, window: int, windows: int | None) -> np.ndarray:
    """The text cut into windows, (windows, window)."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids are {ids.dtype} {ids.shape}, expected one list of integers")
    if window < 2 or (windows is not None and windows < 1):
        raise ValueError(f"window is {window} and windows {windows}, expected >= 2 and >= 1")
    available = len(ids) // window
    count = available if windows is None else windows
    if not 1 <= count <= available:
        need = f"{max(count, 1)} windows of {window}"
        raise ValueError(f"the text has {len(ids)} tokens, expected at least {need}")
    return ids[: count * window].reshape(count, window)


def peak_of(compiled: Any) -> int | None:
    """Bytes of a compiled function's arguments, results and temporaries; None if not known."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return total - stats.alias_size_in_bytes
