"""A teacher's logits, of which k of each token are kept, and the loss of what was kept."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import KEY, POSITIVE, Kind, shown, takes
from .chunked_logits import Logits

_KEY = Kind(f"{KEY.expected}, or None", lambda x: x is None or KEY.accepts(x))
KeptKind = Literal["top", "sampled"]


@takes(k=POSITIVE, key=_KEY, chunk=POSITIVE)
def keep_logits(
    teacher: Logits,
    k: int,
    *,
    kind: KeptKind = "top",
    key: Array | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> dict[str, Array]:
    """k log-probabilities of each token (B, T), from logits of `chunk` tokens of a row at a time.

    The result is {"teacher_ids": (B, T, k) i32, "teacher_log_probs": (B, T, k) f32, "teacher_rest":
    (B, T) f32}, for `kept_divergence`, and for `jm.data.write_kept`, which takes about 2.6 bytes
    for each.

    "top" keeps the k most probable ids; the rest is the probability of all others together. A loss
    of them alone is biased: how the rest is shared is not learnt. "sampled" draws k ids, of which
    the loss is right on average (Anshumann et al., 2025: sparse logit sampling). They are those of
    the k largest p / u with u uniform in 0 to 1, the rest is the largest p / u that was left out,
    and an id counts max(p, rest): priority sampling (Duffield et al., 2007), where probable ids are
    taken nearly always, and with their own p.

    Args:
        teacher: hidden states and the head, which may be encoded.
        k: logits that are kept of each token, less than the vocabulary.
        kind: "top" or "sampled".
        key: of the random numbers of "sampled".
        temperature: what the logits are divided by.
        chunk: tokens of a row whose logits are in memory at a time.

    Raises:
        ValueError: `kind` or `temperature` is none of the above, "sampled" has no key, k is not
            less than the vocabulary, or `chunk` does not divide T.

    Example:
        >>> teacher = Logits(jnp.ones((1, 4, 8)), jnp.ones((8, 32)))
        >>> kept = keep_logits(teacher, 8, chunk=2)
        >>> kept["teacher_ids"].shape, kept["teacher_rest"].round(2).tolist()
        ((1, 4, 8), [[0.75, 0.75, 0.75, 0.75]])
    """
    _check(kind, temperature)
    if kind == "sampled" and key is None:
        raise ValueError("kind is 'sampled' and key is None, expected a key of jax.random")
    batch, steps, width = teacher.x.shape
    chunk = min(chunk, steps)
    if steps % chunk:
        raise ValueError(f"a chunk of {chunk} positions does not divide the {steps} of each row")

    def of_part(part):
        x, number = part
        logits = teacher.of(x).astype(jnp.float32) / temperature
        if k >= logits.shape[-1]:
            raise ValueError(f"k is {k}, expected less than the vocabulary, {logits.shape[-1]}")
        logs = jax.nn.log_softmax(logits)
        if kind == "top":
            values, ids = jax.lax.top_k(logs, k)
            others = jnp.put_along_axis(logs, ids, -jnp.inf, axis=-1, inplace=False)
            return ids, values, jnp.exp(others).sum(-1)
        uniform = jax.random.uniform(jax.random.fold_in(key, number), logs.shape, minval=1e-7)
        priorities, ids = jax.lax.top_k(logs - jnp.log(uniform), k + 1)
        values = jnp.take_along_axis(logs, ids[..., :k], -1)
        return ids[..., :k], values, jnp.minimum(jnp.exp(priorities[..., k]), 1.0)

    # (B, T, D) as (chunks, B, chunk, D), and back
    parts = jnp.moveaxis(teacher.x.reshape(batch, steps // chunk, chunk, width), 1, 0)
    kept = jax.lax.map(of_part, (parts, jnp.arange(steps // chunk)))
    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, steps, *x.shape[3:])
    return dict(zip(("teacher_ids", "teacher_log_probs", "teacher_rest"), map(whole, kept)))


@takes(vocabulary=POSITIVE)
def kept_divergence(
    *, vocabulary: int, kind: KeptKind = "top", temperature: float = 1.0
) -> Callable[[Array, Array, Array, Array], Array]:
    """A function (student's logits (..., V), ids, log-probabilities, rest) -> T² · KL (...), f32.

    The other three are those of `keep_logits`, (..., k), (..., k) and (...), perhaps from a file:
    `kept_divergence(**jm.data.KeptLogits(path).options)`. For "top" it is the KL of k + 1 classes,
    the kept ids and all others together. For "sampled" it is Σ max(p, rest) · (log p − log q). Its
    mean over samples is the KL of all classes, and so it is with its gradient. It is a loss for
    `chunked`.

    Raises:
        ValueError: `kind` or `temperature` is none that `keep_logits` takes; when it is called, the
            student has another vocabulary.

    Example:
        >>> import jaxmem as jm
        >>> teacher = Logits(jnp.ones((1, 4, 8)), jnp.ones((8, 32)))
        >>> kept = jm.train.keep_logits(teacher, 8)
        >>> loss = kept_divergence(vocabulary=32)
        >>> values = jm.train.chunked(loss, teacher, *kept.values())
        >>> values.shape, abs(float(values.sum())) < 1e-5
        ((1, 4), True)
    """
    _check(kind, temperature)

    def loss(student, ids, log_probs, rest):
        if student.shape[-1] != vocabulary:
            raise ValueError(
                f"the student has logits of {student.shape[-1]} classes and the teacher of "
                f"{vocabulary}, expected one vocabulary"
            )
        logits = student.astype(jnp.float32) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        log_q = jnp.take_along_axis(logits, ids, -1) - total[..., None]
        p = jnp.exp(log_probs)
        weight = p if kind == "top" else jnp.maximum(p, rest[..., None])
        value = (weight * jnp.where(weight > 0, log_probs - log_q, 0.0)).sum(-1)
        if kind == "top":
            others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
            log_q_rest = jax.nn.logsumexp(others, axis=-1) - total
            log_rest = jnp.log(jnp.maximum(rest, jnp.finfo(jnp.float32).tiny))
            value = value + rest * jnp.where(rest > 0, log_rest - log_q_rest, 0.0)
        return temperature**2 * value

    return loss


def _check(kind: str, temperature: float) -> None:
    if kind not in ("top", "sampled"):
        raise ValueError(f"kind is {shown(kind)}, expected 'top' or 'sampled'")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0")
