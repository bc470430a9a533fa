"""preference: −log σ(β · Δ), and odds_ratio, of an answer that is preferred to another one."""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import Kind, takes

_ANSWERS = Kind("log-probabilities (rows,)", lambda x: hasattr(x, "dtype") and len(x.shape) == 1)
_PAIR = Kind(
    "two arrays (rows,) of log-probabilities",
    lambda x: isinstance(x, tuple | list) and len(x) == 2 and all(map(_ANSWERS.accepts, x)),
)


@takes(chosen=_ANSWERS, rejected=_ANSWERS, reference=_PAIR)
def preference(
    chosen: Array,
    rejected: Array,
    *,
    reference: tuple[Array, Array],
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Array:
    """The loss of direct preference optimization (DPO, Rafailov et al., 2023) of each pair, (B,).

    `chosen` and `rejected` are log-probabilities (B,) of whole answers, and `reference` is the same
    two of the model that training began with: −log σ(β · ((c − r) − (c₀ − r₀))). They are
    `-chunked(cross_entropy(), ...).sum(1)` with a mask of the answers' tokens. `smoothing` is the
    share of pairs that are labelled the wrong way round (cDPO, Mitchell, 2023).

    Raises:
        ValueError: `beta` is not positive, or `smoothing` is outside 0 to ½.

    Example:
        >>> c, r = jnp.array([-4.0]), jnp.array([-6.0])
        >>> float(preference(c, r, reference=(r, r), beta=0.5)[0]).__round__(4)
        0.3133
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected more than 0")
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing is {smoothing}, expected 0 to less than 0.5")
    margin = beta * ((chosen - rejected) - jax.lax.stop_gradient(reference[0] - reference[1]))
    loss = -(1 - smoothing) * jax.nn.log_sigmoid(margin)
    return loss - smoothing * jax.nn.log_sigmoid(-margin) if smoothing else loss


@takes(chosen=_ANSWERS, rejected=_ANSWERS)
def odds_ratio(chosen: Array, rejected: Array) -> Array:
    """The odds-ratio loss of ORPO (Hong et al., 2024) of each pair, (B,): it needs no reference.

    `chosen` and `rejected` are mean log-probabilities (B,) of a token of each answer, less than 0.
    The odds of an answer of probability p are p / (1 − p); the loss is −log σ of the log of their
    ratio. ORPO adds it, times .1, to the cross entropy of the chosen answer.

    Example:
        >>> float(odds_ratio(jnp.log(jnp.array([0.8])), jnp.log(jnp.array([0.5])))[0]).__round__(4)
        0.2231
    """
    least = -jnp.finfo(jnp.float32).tiny  # log p of 0 has infinite odds
    chosen, rejected = (jnp.minimum(x.astype(jnp.float32), least) for x in (chosen, rejected))
    odds = lambda log_p: log_p - jnp.log(-jnp.expm1(log_p))
    return -jax.nn.log_sigmoid(odds(chosen) - odds(rejected))
