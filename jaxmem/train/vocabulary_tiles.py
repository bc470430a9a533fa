"""tiled_divergence: a divergence from a teacher, from logits of some ids of all tokens at a time.

The divergence D of P, the teacher, and Q, the student, is a sum over ids of v(log p, log q). Its
gradient of the student's logits is w − q · Σ w, with w = q · ∂D/∂q. So three numbers a token are
enough to compute both of one tile of ids after the other: the two logs of the softmaxes' sums, and
Σ w. The gradient of the head is made tile by tile, and needs no second copy, as one over chunks of
tokens does.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import POSITIVE, shown, takes
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from .chunked_logits import Logits
from .teacher_losses import Divergence, log_mixture


class _Options(NamedTuple):
    """What does not change while it is computed; it is hashed."""

    axes: tuple[int, int]
    finishes: tuple
    kind: str
    beta: float
    temperature: float
    tile: int
    vocabulary: int


@takes(tile=POSITIVE)
def tiled_divergence(
    student: Logits,
    teacher: Logits,
    *,
    kind: Divergence = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    tile: int = 2048,
) -> Array:
    """T² · divergence of each token, (B, T) f32: `teacher_divergence`, from `tile` ids at a time.

    Logits take B · T · tile · 4 bytes of each model. With `chunked` they take B · chunk · V · 4,
    and the gradient of the student's head is in memory twice. The logits are computed twice, and
    the backward pass computes both again: 25 to 38 % more products than with `chunked`. An encoded
    head is decoded tile by tile and is frozen; no gradient reaches the teacher.

    Args:
        student: hidden states and the head. `finish` works on each logit alone, such as a soft
            cap; one that adds a bias to all ids is for `chunked`.
        teacher: likewise, of as many ids.
        kind: "forward", "reverse" or "jsd", see `teacher_divergence`.
        beta: the share of the teacher in the mixture of "jsd".
        temperature: T, what both logits are divided by.
        tile: ids whose logits are in memory at a time; a multiple of 8 for an encoded head.

    Raises:
        ValueError: student and teacher have other vocabularies or tokens, an option is none of the
            above, or the ids of an encoded head are not multiples of 8.
        NotImplementedError: an encoded head has no rows of ids.

    Example:
        >>> student = Logits(jnp.ones((1, 4, 8)), jnp.ones((8, 32)))
        >>> teacher = Logits(jnp.ones((1, 4, 16)), jnp.ones((16, 32)))
        >>> tiled_divergence(student, teacher, tile=8).shape
        (1, 4)
    """
    if kind not in _TERMS:
        raise ValueError(f"kind is {shown(kind)}, expected one of {sorted(_TERMS)}")
    if not temperature > 0 or not 0 < beta < 1:
        raise ValueError(
            f"temperature is {temperature} and beta {beta}, expected above 0, and below 1 of beta"
        )
    sizes = [y.head.shape[1 - y.axis] for y in (student, teacher)]
    tokens = [y.x.shape[:2] for y in (student, teacher)]
    if sizes[0] != sizes[1] or tokens[0] != tokens[1]:
        raise ValueError(
            f"the student has logits of {sizes[0]} classes for {tokens[0]} tokens and the teacher "
            f"of {sizes[1]} for {tokens[1]}, expected one vocabulary and the same tokens"
        )
    tile = min(tile, sizes[0])
    for y in (student, teacher):
        check_head(y, tile)
    options = _Options(
        (student.axis, teacher.axis),
        (student.finish, teacher.finish),
        kind,
        beta,
        temperature,
        tile,
        sizes[0],
    )
    value = _divergence(options, (student.x, student.head), (teacher.x, teacher.head))
    return temperature**2 * value


def check_head(logits: Logits, tile: int) -> None:
    """Refuses an encoded head that cannot be read tile by tile."""
    head, vocabulary = logits.head, logits.head.shape[1 - logits.axis]
    if not is_encoded(head):
        return
    if not isinstance(head, MatrixLeaf) or head.fold.n != vocabulary:
        raise NotImplementedError(
            f"a head of {type(head).__name__} has no rows of ids; jm.train.chunked takes it"
        )
    if tile % 8 or vocabulary % 8:
        raise ValueError(
            f"a tile of {tile} of {vocabulary} ids of an encoded head, expected multiples of 8"
        )


def head_tile(head: Any, axis: int, start: Array, size: int) -> Array:
    """Rows (size, D) of the ids from `start` on."""
    if is_encoded(head):
        return head.slice_rows(start, size).rows()
    rows = lax.dynamic_slice_in_dim(head, start, size, 1 - axis)
    return rows if axis == 1 else rows.T


def with_tile(dhead: Array, slope: Array, x: Array, axis: int, start: Array) -> Array:
    """A head's gradient with that of ids from `start` on, of their logits' `slope` (B, T, n)."""
    spec = "btv,btd->vd" if axis == 1 else "btv,btd->dv"
    new = jnp.einsum(spec, slope, x, preferred_element_type=jnp.float32)
    return lax.dynamic_update_slice_in_dim(dhead, new.astype(dhead.dtype), start, 1 - axis)


def _logits(options: _Options, which: int, side: tuple, start: Array) -> Array:
    """The logits (B, T, tile) in f32, divided by the temperature."""
    x, head = side
    rows = head_tile(head, options.axes[which], start, options.tile)
    products = jnp.einsum(
        "btd,vd->btv", x, rows.astype(x.dtype), preferred_element_type=jnp.float32
    )
    return options.finishes[which](products) / options.temperature


def over_tiles(options: Any, body: Any, carry: Any) -> Any:
    """Folds body(carry, start, counted) over tiles; `counted` (1, 1, tile) are ids not yet seen.

    The last tile overlaps the one before if the tiles do not divide the vocabulary.
    """
    count = -(-options.vocabulary // options.tile)

    def step(carry, i):
        start = jnp.minimum(i * options.tile, options.vocabulary - options.tile)
        counted = start + jnp.arange(options.tile) >= i * options.tile
        return body(carry, start, counted[None, None]), None

    return lax.scan(step, carry, jnp.arange(count))[0]


def _log_sums(options: _Options, student: tuple, teacher: tuple) -> list[Array]:
    """log Σ exp(logits) of student and teacher, (B, T) each."""

    def add(sums, start, counted):
        found = []
        for which, (side, total) in enumerate(zip((student, teacher), sums)):
            logits = jnp.where(counted, _logits(options, which, side, start), -jnp.inf)
            found.append(jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1)))
        return found

    nothing = jnp.full(student[0].shape[:2], -jnp.inf)
    return over_tiles(options, add, [nothing, nothing])


def _forward(log_p, log_q, beta):
    return _expected(log_p, log_q), -jnp.exp(log_p)


def _reverse(log_p, log_q, beta):
    value = _expected(log_q, log_p)
    return value, value


def _jsd(log_p, log_q, beta):
    mixed = log_mixture(log_p, log_q, beta)
    of_q = (1 - beta) * _expected(log_q, mixed)
    return beta * _expected(log_p, mixed) + of_q, of_q


def _expected(log_p: Array, log_q: Array) -> Array:
    """p · (log p − log q), and 0 where p is."""
    p = jnp.exp(log_p)
    return p * jnp.where(p > 0, log_p - log_q, 0.0)


_TERMS = {"forward": _forward, "reverse": _reverse, "jsd": _jsd}  # (v, w) of each id


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(options: _Options, student: tuple, teacher: tuple) -> Array:
    return _with_sums(options, student, teacher)[0]


def _with_sums(options: _Options, student: tuple, teacher: tuple) -> tuple[Array, tuple]:
    """The divergence (B, T), and what the backward pass needs."""
    sums = _log_sums(options, student, teacher)

    def add(total, start, counted):
        log_q, log_p = _log_probs(options, student, teacher, sums, start)
        terms = _TERMS[options.kind](log_p, log_q, options.beta)
        return [a + jnp.where(counted, x, 0.0).sum(-1) for a, x in zip(total, terms)]

    nothing = jnp.zeros(student[0].shape[:2])
    value, weight = over_tiles(options, add, [nothing, nothing])
    return value, (student, teacher, sums, weight)


def _log_probs(options, student, teacher, sums, start):
    return [
        _logits(options, which, side, start) - total[..., None]
        for which, (side, total) in enumerate(zip((student, teacher), sums))
    ]


def _backward(options: _Options, kept: tuple, cotangent: Array) -> tuple:
    (x, head), teacher, sums, weight = kept
    frozen = is_encoded(head)

    def add(carry, start, counted):
        dx, dhead = carry
        log_q, log_p = _log_probs(options, (x, head), teacher, sums, start)
        slope = _TERMS[options.kind](log_p, log_q, options.beta)[1]
        slope = (slope - jnp.exp(log_q) * weight[..., None]) * cotangent[..., None]
        rows = head_tile(head, options.axes[0], start, options.tile).astype(x.dtype)
        products = jnp.einsum("btd,vd->btv", x, rows, preferred_element_type=jnp.float32)
        slope = jax.vjp(options.finishes[0], products)[1](slope / options.temperature)[0]
        counts = jnp.where(counted, slope, 0.0).astype(x.dtype)
        dx = dx + jnp.einsum("btv,vd->btd", counts, rows, preferred_element_type=jnp.float32)
        if not frozen:
            dhead = with_tile(dhead, slope.astype(x.dtype), x, options.axes[0], start)
        return dx, dhead

    start = jnp.zeros(x.shape, jnp.float32), None if frozen else jnp.zeros(head.shape, head.dtype)
    dx, dhead = over_tiles(options, add, start)
    return (dx.astype(x.dtype), dhead), None


_divergence.defvjp(_with_sums, _backward)
