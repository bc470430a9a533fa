"""next_tokens: one token of each row, chosen as that row's own request says."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .generation_request import GenerationRequest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowChoices:
    """How each row chooses its tokens: the fields of its request, (rows,) each.

    An option that is switched off has the value that changes nothing: `top_k` 0, `top_p` 1,
    `min_p` 0, `repetition_penalty` 1.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    seed: Array
    logprobs: Array

    @classmethod
    def of(cls, requests: Sequence[GenerationRequest | None]) -> "RowChoices":
        """The choices of the requests; a row without one takes the most probable token.

        Example:
            >>> RowChoices.of([None, GenerationRequest("a", "b", top_k=5)]).top_k.tolist()
            [0, 5]
        """

        def column(name: str, off: float | int | bool, dtype: type) -> np.ndarray:
            values = [off if r is None else getattr(r, name) for r in requests]
            return np.array([off if value is None else value for value in values], dtype)

        return cls(
            temperature=column("temperature", 0.0, np.float32),
            top_k=np.minimum(column("top_k", 0, np.int64), 2**31 - 1).astype(np.int32),
            top_p=column("top_p", 1.0, np.float32),
            min_p=column("min_p", 0.0, np.float32),
            repetition_penalty=column("repetition_penalty", 1.0, np.float32),
            seed=column("seed", 0, np.int32),
            logprobs=column("logprobs", False, bool),
        )


def next_tokens(
    logits: Array, choices: RowChoices, step: Array, seen: Array
) -> tuple[Array, Array]:
    """The next token of each row, and the logarithm of its probability.

    Row i depends on row i of the arguments alone, bit for bit. A draw uses the key of the row's
    seed, folded with its step, as `jm.models.generate` does for one prompt. What no row asks for is
    not computed, and changes no other row's numbers.

    Args:
        logits: (rows, vocab) f32.
        choices: how each row chooses.
        step: (rows,) i32, the number of tokens that each row has generated before.
        seen: (rows, vocab) bool, the tokens that each row's prompt and answer have.

    Returns:
        tokens (rows,) i32; log-probabilities (rows,) f32, 0 for rows that ask for none.

    Example:
        >>> choices = RowChoices.of([None, GenerationRequest("a", "b", repetition_penalty=4.0)])
        >>> logits = jnp.array([[1.0, 3.0, 2.0]] * 2)
        >>> seen = jnp.array([[False, True, False]] * 2)
        >>> next_tokens(logits, choices, jnp.zeros(2, jnp.int32), seen)[0].tolist()
        [1, 2]
    """
    penalty = jnp.asarray(choices.repetition_penalty)[:, None]
    penalised = lax.cond(
        (penalty != 1).any(),
        lambda: jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits),
        lambda: logits,
    )
    greedy = jnp.argmax(penalised, axis=-1).astype(jnp.int32)
    temperature = jnp.asarray(choices.temperature)
    drawn = lax.cond(
        (temperature > 0).any(),
        lambda: _draw(penalised, choices, step),
        lambda: greedy,
    )
    tokens = jnp.where(temperature > 0, drawn, greedy)
    asked = jnp.asarray(choices.logprobs)
    logprobs = lax.cond(
        asked.any(),
        lambda: jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, None], axis=1),
        lambda: jnp.zeros((len(tokens), 1), logits.dtype),
    )
    return tokens, jnp.where(asked, logprobs[:, 0], 0.0)


def _draw(logits: Array, choices: RowChoices, step: Array) -> Array:
    """A token of each row (rows,) i32, drawn from what the row's cuts leave."""
    temperature = jnp.asarray(choices.temperature)[:, None]
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    top_k, top_p = jnp.asarray(choices.top_k)[:, None], jnp.asarray(choices.top_p)[:, None]
    cut = ((top_k > 0) | (top_p < 1)).any()
    logits = lax.cond(cut, lambda: _cut_by_rank(logits, top_k, top_p), lambda: logits)
    least = logits.max(axis=-1, keepdims=True) + jnp.log(jnp.asarray(choices.min_p))[:, None]
    logits = jnp.where(logits < least, -jnp.inf, logits)  # log(0) is -inf: no logit is below it
    key = lambda seed, n: jax.random.fold_in(jax.random.key(seed), n)
    keys = jax.vmap(key)(jnp.asarray(choices.seed), step)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _cut_by_rank(logits: Array, top_k: Array, top_p: Array) -> Array:
    """The logits (rows, vocab) with -inf at tokens outside top_k (rows, 1), then outside top_p."""
    ranked = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.clip(jnp.where(top_k > 0, top_k, ranked.shape[1]), 1, ranked.shape[1]) - 1
    least = jnp.take_along_axis(ranked, last, axis=1)
    ranked = jnp.where(ranked < least, -jnp.inf, ranked)
    share = jax.nn.softmax(ranked, axis=-1)
    among = (jnp.cumsum(share, axis=-1) - share < top_p) | (top_p >= 1)
    of_p = jnp.where(among, ranked, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits < jnp.maximum(least, of_p), -jnp.inf, logits)
