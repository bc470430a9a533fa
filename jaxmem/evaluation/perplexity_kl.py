"""evaluate: perplexity exp(mean NLL), and how far a model strays from its dense original.

The protocol: the text in one encode call, no BOS, non-overlapping windows of 1,024 tokens with
1,023 predictions each. KL(dense ‖ model) and top-1 agreement are taken over the same predictions.
A 95 % interval is the t-interval over the windows' means (exp of it for a perplexity), so it needs
two windows; over sentences for a cosine.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.leaf import nbytes
from ..parallel.constraints import whole
from .confidence import Estimate, spearman


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` and `evaluate_embeddings` measured; `str()` is a table.

    Sizes are in bytes: of the weights when resident, of the compiled forward pass over one batch
    at its peak (weights, logits and temporaries), of the file where the caller fills it in. KL is
    in nats. Seconds are the median forward pass over whole windows, without the first; they say
    nothing of decoding. For an encoder, tokens are sentences and seconds those of the whole call.

    Example:
        >>> e = Evaluation(tokens=2046, resident=162_700_000, perplexity=Estimate(20.1, 17.5, 23.1))
        >>> print(e)
        tokens               2,046
        resident       162,700,000
        perplexity   20.1  [17.5, 23.1]
        >>> Evaluation.from_json(e.to_json()) == e
        True
    """

    tokens: int
    resident: int
    peak: int | None = None
    file: int | None = None
    seconds_per_token: float | None = None
    perplexity: Estimate | None = None
    dense_perplexity: Estimate | None = None
    kl: Estimate | None = None
    agreement: Estimate | None = None
    spearman: Estimate | None = None
    cosine: Estimate | None = None
    kl_by_window: tuple[float, ...] | None = None

    def gain(self, before: Self) -> Estimate:
        """How much nearer the dense model than `before`: KL, in nats, over the same windows.

        The interval is of the windows' differences, and so narrower than those of the two.

        Raises:
            ValueError: either has no KL, or they have different windows.

        Example:
            >>> a = Evaluation(8, 1, kl_by_window=(0.2, 0.5))
            >>> print(dataclasses.replace(a, kl_by_window=(0.1, 0.4)).gain(a))
            0.1  [0.1, 0.1]
        """
        then, now = before.kl_by_window, self.kl_by_window
        if then is None or now is None or len(then) != len(now):
            count = lambda each: "none" if each is None else len(each)
            raise ValueError(f"KL of {count(then)} and {count(now)} windows, expected as many")
        return Estimate.of(np.subtract(then, now))

    def to_json(self) -> str:
        """Plain JSON; what was not measured is left out."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        content = json.loads(text)
        kinds = {dict: lambda v: Estimate(**v), list: tuple}
        return cls(**{k: kinds.get(type(v), lambda v: v)(v) for k, v in content.items()})

    def __str__(self) -> str:
        values = {k: v for k, v in vars(self).items() if v is not None and not isinstance(v, tuple)}
        width = max(map(len, values))
        formats = {int: "{:,}", float: "{:.4g}"}
        rows = ((k, formats.get(type(v), "{}").format(v)) for k, v in values.items())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


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

    `apply(params, ids)` gives logits (batch, window, vocab); encoded params need a lifted
    one. `ids` is the text as one list of tokens; the first `windows` whole windows of it count,
    or all of them. `reference` is the dense `(apply, params)`. Both sets of logits of one batch,
    2 · batch · window · vocab · 4 bytes, are alive at once, and nothing else of that size.
    `progress(done, windows)` is called after each batch.

    Raises:
        ValueError: the text is shorter than the windows asked for, or has a token that the model
            does not know; a window or batch that is too small.
        TypeError: `ids` is not a one-dimensional list of integers.

    Example:
        >>> import jax.numpy as jnp
        >>> unigram = lambda params, ids: jnp.broadcast_to(params, (*ids.shape, 4))
        >>> print(evaluate(unigram, jnp.zeros(4), [0, 1, 2, 3] * 8, window=8).perplexity)
        4  [4, 4]
    """
    text = _windows(ids, window, windows)
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    count = len(text)
    batches = [np.resize(text[i : i + batch], (batch, window)) for i in range(0, count, batch)]
    vocab = jax.eval_shape(apply, params, batches[0]).shape[-1]
    if text.max() >= vocab or text.min() < 0:
        raise ValueError(f"ids reach {text.min()}..{text.max()}, expected 0..{vocab - 1}")
    forward = jax.jit(apply).lower(params, batches[0]).compile()
    dense = jax.jit(reference[0]) if reference else None

    def step(tokens):  # a function, so that no logits outlive their batch
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
    most = {"agreement": 1.0}
    estimates = {k: Estimate.of(v, 0.0, most.get(k, math.inf)) for k, v in means.items()}
    for name in {"perplexity", "dense_perplexity"} & estimates.keys():
        estimates[name] = estimates[name].exp()
    return Evaluation(
        tokens=count * (window - 1),
        resident=nbytes(params),
        peak=_peak(forward),
        seconds_per_token=float(np.median(seconds[1:])) if len(seconds) > 1 else None,
        kl_by_window=tuple(map(float, means["kl"])) if "kl" in means else None,
        **estimates,
    )


def evaluate_embeddings(
    embed: Callable[[Any, Sequence[str]], Any],
    params: Any,
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[float],
    *,
    reference: tuple[Callable[[Any, Sequence[str]], Any], Any] | None = None,
) -> Evaluation:
    """How an encoder ranks sentence pairs (STS-B), and its cosine to a dense `reference`.

    `embed(params, sentences)` gives one vector a sentence, as `sentence_embedder` makes it.
    `spearman` is the rank correlation of the pairs' cosines with `scores`; `cosine` the mean
    cosine of each sentence's vector to that of the dense `(embed, params)`, which still sees
    differences where the ranks do not.

    Raises:
        ValueError: fewer than four pairs, another number of scores, scores or cosines that are
            all equal, or a vector that is not finite.

    Example:
        >>> import numpy as np
        >>> embed = lambda params, sentences: np.array([[1.0, len(s)] for s in sentences])
        >>> pairs = [("a", "a"), ("a", "bb"), ("a", "ccc"), ("a", "dddd")]
        >>> evaluate_embeddings(embed, None, pairs, [5, 4, 2, 1]).spearman.mean > 0.999
        True
    """
    if len(pairs) != len(scores):
        raise ValueError(f"{len(pairs)} pairs have {len(scores)} scores, expected one each")
    sentences = [side for pair in pairs for side in pair]
    start = time.perf_counter()
    vectors = np.asarray(embed(params, sentences), np.float64)
    seconds = time.perf_counter() - start
    if not np.isfinite(vectors).all():
        raise ValueError("the embeddings are not all finite")
    result = Evaluation(
        tokens=len(sentences),
        resident=nbytes(params),
        seconds_per_token=seconds / len(sentences),
        spearman=spearman(_cosine(vectors[::2], vectors[1::2]), scores),
    )
    if reference:
        dense = np.asarray(reference[0](reference[1], sentences), np.float64)
        result = dataclasses.replace(result, cosine=Estimate.of(_cosine(vectors, dense), -1.0, 1.0))
    return result


def sentence_embedder(model: Any, *, batch: int = 64, length: int = 256) -> Callable:
    """`embed(params, sentences)` for an encoder: mean of the hidden vectors (Reimers, 2019).

    Sentences are cut at `length` tokens, sorted by length and run `batch` at a time, padded to
    multiples of 16, so that few shapes are compiled.
    """
    from ..architectures import bert

    run = jax.jit(lambda params, ids, mask: bert.embed(model.apply(params, ids, mask), mask))

    def embed(params: Any, sentences: Sequence[str]) -> np.ndarray:
        model.tokenizer.no_padding()
        model.tokenizer.enable_truncation(length)
        ids = [encoding.ids for encoding in model.tokenizer.encode_batch(list(sentences))]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = [np.empty(0)] * len(ids)
        for group in (order[i : i + batch] for i in range(0, len(order), batch)):
            width = -(-max(len(ids[i]) for i in group) // 16) * 16
            padded = np.zeros((batch, width), np.int32)
            mask = np.zeros((batch, width), bool)
            for row, i in enumerate(group):
                padded[row, : len(ids[i])], mask[row, : len(ids[i])] = ids[i], True
            for i, vector in zip(group, np.asarray(run(params, padded, mask))):
                out[i] = vector
        return np.stack(out)

    return embed


@jax.jit
def _score(logits: Array, dense: Array | None, ids: Array) -> dict[str, Array]:
    """Means over each window, (batch,); some positions at a time, so no logits are copied."""
    if dense is not None and dense.shape != logits.shape:
        raise ValueError(f"the reference has logits {dense.shape}, the model {logits.shape}")

    def position(row):
        x, y, target = row
        log_q = jax.nn.log_softmax(x.astype(jnp.float32))
        scores = {"perplexity": -log_q[target]}
        if y is not None:
            log_p = jax.nn.log_softmax(y.astype(jnp.float32))
            p = jnp.exp(log_p)
            scores["dense_perplexity"] = -log_p[target]
            scores["kl"] = jnp.where(p > 0, p * (log_p - log_q), 0).sum()
            scores["agreement"] = (x.argmax() == y.argmax()).astype(jnp.float32)
        return scores

    flat = lambda x: x.reshape(-1, x.shape[-1])
    rows = (*jax.tree.map(flat, (logits, dense)), jnp.roll(ids, -1, axis=1).reshape(-1))
    scores = jax.lax.map(position, rows, batch_size=16)
    # the last token of a window has nothing to predict
    return whole(jax.tree.map(lambda x: x.reshape(ids.shape)[:, :-1].mean(axis=1), scores))


def _windows(ids: Any, window: int, windows: int | None) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids are {ids.dtype} {ids.shape}, expected one list of integers")
    if window < 2 or (windows is not None and windows < 1):
        raise ValueError(f"window is {window} and windows {windows}, expected >= 2 and >= 1")
    there = len(ids) // window
    count = there if windows is None else windows
    if not 1 <= count <= there:
        need = f"{max(count, 1)} windows of {window}"
        raise ValueError(f"the text has {len(ids)} tokens, expected at least {need}")
    return ids[: count * window].reshape(count, window).astype(np.int32)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-30)


def _peak(compiled: Any) -> int | None:
    """Bytes of a compiled function's arguments, results and temporaries, where it can tell."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return held - stats.alias_size_in_bytes
