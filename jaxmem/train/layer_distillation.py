"""Losses between layers of a student and a teacher: hidden states, attention and relations."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import POSITIVE, Kind, takes
from .chunked_logits import HIDDEN, MASK
from .output_losses import kl_divergence

_PROJECTION = Kind(
    "a matrix (student's width, teacher's width), or None",
    lambda x: x is None or (hasattr(x, "shape") and len(x.shape) == 2),
)
_SCORES = Kind(
    "scores (rows, heads, tokens, tokens)", lambda x: hasattr(x, "shape") and len(x.shape) == 4
)
_PAIRS = Kind(
    "booleans (rows, tokens) or (rows, 1, tokens, tokens), or None",
    lambda x: x is None or (hasattr(x, "shape") and len(x.shape) in (2, 4) and x.dtype == bool),
)
_VECTORS = Kind(
    "vectors (rows, tokens, width), or two arrays of them",
    lambda x: all(HIDDEN.accepts(y) for y in (x if isinstance(x, tuple) and len(x) == 2 else (x,))),
)


@takes(student=HIDDEN, teacher=HIDDEN, projection=_PROJECTION, mask=MASK)
def hidden_loss(
    student: Array, teacher: Array, *, projection: Array | None = None, mask: Array | None = None
) -> Array:
    """The mean squared error between hidden states · projection and a teacher's, in f32.

    Shapes: student (B, T, d), teacher (B, T, D), `projection` (d, D), which is trained with the
    student, and may be None if d is D. `mask` (B, T) says which tokens count; the loss is 0 if none
    does. No gradient reaches the teacher. It serves embeddings and the outputs of layers (Jiao et
    al., 2020: TinyBERT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> student, teacher = jnp.ones((1, 2, 4)), jnp.ones((1, 2, 8))
        >>> float(hidden_loss(student, teacher, projection=jnp.ones((4, 8))))
        9.0
    """
    widths = student.shape[-1], teacher.shape[-1]
    if projection is not None and projection.shape != widths:
        raise ValueError(f"projection has the shape {projection.shape}, expected {widths}")
    found = student.astype(jnp.float32)
    if projection is not None:
        found = jnp.einsum("btd,de->bte", found, projection.astype(jnp.float32))
    if found.shape != teacher.shape:
        raise ValueError(
            f"the student's hidden states are {found.shape} and the teacher's {teacher.shape}, "
            "expected the same shape, or a projection between their widths"
        )
    error = jnp.square(found - jax.lax.stop_gradient(teacher).astype(jnp.float32)).mean(-1)
    return _mean(error, mask)


@takes(student=_SCORES, teacher=_SCORES, mask=_PAIRS)
def attention_loss(student: Array, teacher: Array, *, mask: Array | None = None) -> Array:
    """The mean squared error between scores of attention, before their softmax, in f32.

    Shapes: student and teacher (B, heads, T, T). `mask` (B, T) has the real tokens; a pair counts
    if both of its tokens do; or `mask` (B, 1, T, T) has the pairs, such as those of a decoder.
    No gradient reaches the teacher (Jiao et al., 2020: TinyBERT, which found that scores are
    learnt faster than probabilities).

    Raises:
        ValueError: the shapes differ; `relation_loss` takes other numbers of heads.

    Example:
        >>> scores = jnp.zeros((1, 2, 3, 3))
        >>> float(attention_loss(scores, scores + 2.0))
        4.0
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's scores are {student.shape} and the teacher's {teacher.shape}, expected "
            "as many heads and tokens; relation_loss takes other numbers of heads"
        )
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, :, None] & mask[:, None, None, :]
    # Scores of pairs that do not count may be infinite; they are replaced before the square.
    counted = None if mask is None else jnp.broadcast_to(mask, student.shape)
    difference = difference if mask is None else jnp.where(counted, difference, 0.0)
    return _mean(jnp.square(difference), counted)


@takes(student=_VECTORS, teacher=_VECTORS, heads=POSITIVE, mask=MASK)
def relation_loss(
    student: Array | tuple[Array, Array],
    teacher: Array | tuple[Array, Array],
    *,
    heads: int,
    mask: Array | None = None,
    causal: bool = False,
) -> Array:
    """The mean KL(teacher ‖ student) of how the tokens of a row relate, in nats, in f32.

    A relation is softmax(x · xᵀ / √width) of the vectors x of a head: queries, keys or values, of
    which student and teacher may have other widths and heads, since all heads are joined and cut
    into `heads` again (Wang et al., 2020: MiniLM; 2021: MiniLMv2). A pair (queries, keys) relates
    the first to the second, which is attention itself. The relations of one head at a time are in
    memory, B · T² · 4 bytes of each model, and are computed again in the backward pass.

    Args:
        student: vectors (B, T, d), or a pair of them.
        teacher: vectors (B, T, D), or a pair of them; no gradient reaches it.
        heads: heads of the relations, which divides d and D.
        mask: (B, T), which tokens are real; None for all of them.
        causal: a token relates only to itself and to those before it.

    Raises:
        ValueError: `heads` does not divide a width, or rows or tokens differ.

    Example:
        >>> values = jax.random.normal(jax.random.key(0), (1, 4, 8))
        >>> float(relation_loss(values, values, heads=2))
        0.0
    """
    sides = [x if isinstance(x, tuple) else (x, x) for x in (student, teacher)]
    vectors = [*sides[0], *(jax.lax.stop_gradient(x) for x in sides[1])]
    shape = vectors[0].shape[:2]
    wrong = [x.shape for x in vectors if x.shape[:2] != shape or x.shape[2] % heads]
    if wrong or (mask is not None and mask.shape != shape):
        raise ValueError(
            f"vectors have the shape {wrong[0] if wrong else mask.shape}, expected {shape} and a "
            f"width that {heads} heads divide"
        )
    seen = jnp.ones((1, 1, 1), bool) if mask is None else mask[:, None, :]  # (B, 1, keys)
    if causal:
        seen = seen & jnp.tril(jnp.ones((shape[1], shape[1]), bool))[None]

    def scores(x, y):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        products = jnp.einsum("btd,bsd->bts", x, y) / math.sqrt(x.shape[-1])
        return jnp.where(seen, products, -1e30)

    @jax.checkpoint
    def of_head(parts):
        q, k, teacher_q, teacher_k = parts
        return kl_divergence(scores(teacher_q, teacher_k), scores(q, k))  # (B, T)

    # (B, T, heads · width) as (heads, B, T, width)
    parts = [jnp.moveaxis(x.reshape(*shape, heads, -1), 2, 0) for x in vectors]
    return _mean(jax.lax.map(of_head, tuple(parts)).mean(0), mask)


def _mean(values: Array, mask: Array | None) -> Array:
    """The mean of the values where the mask of their shape is true, and 0 if it never is."""
    if mask is None:
        return values.mean()
    count = jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)
    return jnp.where(mask, values, 0.0).sum() / count
