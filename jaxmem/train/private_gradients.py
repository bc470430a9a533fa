"""DP-SGD: (Σ clip(gᵢ) + N(0, (noise · clip)²)) / batch, of examples i that Poisson sampling drew.

Each example's gradient is shortened to the norm `clip`, so that noise hides whether it took part
(Abadi et al., 2016). Of adapters it is small: what is hidden are few numbers, and per-example
gradients take few bytes. Clipping, accounting and audits are those of jax-privacy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import FUNCTION, POSITIVE, ROW_OF_NUMBERS, check_fields, takes

_OVERFLOW = 0.01  # the share of δ for batches that are larger than there is room for


@dataclasses.dataclass(frozen=True)
class Privacy:
    """How much a trained model may tell of an example: (ε, δ) after `steps` steps.

    `noise` is the standard deviation of the noise in units of `clip`, by the accountant of
    privacy loss distributions (extra `privacy`); it is computed when it is first asked for. Two
    data sets that differ by one example then give models that nobody tells apart better than ε, δ
    allow (Dwork et al., 2006).

    Args:
        epsilon: ε.
        delta: δ, less than 1 / examples.
        examples: examples of the training set.
        batch: examples that a step draws, on average.
        steps: steps of the whole run.
        clip: the most that the gradient of one example may be long.
        micro: examples whose gradients are in memory at a time; None for all of a batch.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> privacy = Privacy(8.0, 1e-4, examples=1000, batch=32, steps=50)
        >>> privacy.capacity, next(privacy.batches(0))[1].shape
        (67, (67,))
    """

    epsilon: float
    delta: float
    _: dataclasses.KW_ONLY
    examples: int
    batch: int
    steps: int
    clip: float = 1.0
    micro: int | None = None

    def __post_init__(self):
        check_fields(self, examples=POSITIVE, batch=POSITIVE, steps=POSITIVE)
        if not (0 < self.epsilon < math.inf and 0 < self.clip < math.inf):
            raise ValueError(
                f"epsilon is {self.epsilon} and clip {self.clip}, expected finite and above 0"
            )
        if not 0 < self.delta < 1 / self.examples:
            raise ValueError(
                f"delta is {self.delta}, expected above 0 and less than 1 / {self.examples}, of as "
                "many examples"
            )
        if self.batch > self.examples:
            raise ValueError(f"a batch of {self.batch} of {self.examples} examples")
        if self.micro is not None and not 0 < self.micro <= self.batch:
            raise ValueError(f"micro is {self.micro}, expected 1 to {self.batch} examples")

    @functools.cached_property
    def capacity(self) -> int:
        """Rows of a batch, of which some are padding, a multiple of `micro`.

        In no step of a run are more drawn, but with the probability δ / 100, which is taken from δ.
        """
        from scipy.stats import binom  # a dependency of jax

        too_many = _OVERFLOW * self.delta / self.steps
        most = int(binom.isf(too_many, self.examples, self.batch / self.examples))
        micro = self.micro or 1
        return -(-most // micro) * micro

    @property
    def noise(self) -> float:
        """The standard deviation of the noise, in units of `clip`, that all steps need.

        Raises:
            ImportError: jax-privacy is missing.
        """
        return _noise(self.epsilon, *self._params)

    def spent(self, steps: int) -> float:
        """ε after so many steps with this noise, at the same δ.

        Raises:
            ImportError: jax-privacy is missing.
        """
        delta, examples, batch, _ = self._params
        params = _package("accounting").DpParams(
            noise_multipliers=self.noise, num_samples=examples, delta=delta, batch_size=batch
        )
        return float(_accountant().compute_epsilon(steps, params))

    @property
    def _params(self) -> tuple[float, int, int, int]:
        """What the accountant takes: δ without the share of overflows, and the sizes."""
        return (1 - _OVERFLOW) * self.delta, self.examples, self.batch, self.steps

    def batches(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, `steps` times, the indices (capacity,) of a batch and which are padding, bool.

        Each example takes part with the probability batch / examples, apart from all others. Which
        ones did is a secret, as the seed is.
        """
        random = np.random.default_rng(seed)
        for _ in range(self.steps):
            drawn = random.binomial(self.examples, self.batch / self.examples)
            drawn = min(drawn, self.capacity)
            indices = np.zeros(self.capacity, np.int64)
            indices[:drawn] = random.choice(self.examples, drawn, replace=False, shuffle=False)
            yield indices, np.arange(self.capacity) >= drawn


@takes(loss=FUNCTION)
def private_gradient(loss: Callable, privacy: Privacy) -> Callable[[Array, Any, Any, Array], Any]:
    """A function (key, pairs, batch, padding) -> the noisy mean gradient of the pairs.

    `loss(pairs, rows)` is the loss of rows, here of one at a time; the first axis of all arrays in
    `batch` has `privacy.capacity` rows, and `padding` says which of them count as none. A loss
    closes over what is frozen, such as encoded weights. `privacy.micro` gradients are in memory at
    a time. The sum is divided by `privacy.batch`, not by the number that was drawn, which is a
    secret. A gradient that is not finite counts as 0.

    Raises:
        ImportError: jax-privacy is missing.

    Example:
        >>> privacy = Privacy(8.0, 1e-4, examples=1000, batch=32, steps=50)
        >>> loss = lambda w, rows: (w * rows).sum()
        >>> private = private_gradient(loss, privacy)  # doctest: +SKIP
        >>> private(jax.random.key(0), jnp.ones(3), rows, padding).shape  # doctest: +SKIP
        (3,)
    """
    summed = _package("clipping").clipped_grad(
        loss, l2_clip_norm=privacy.clip, microbatch_size=privacy.micro
    )
    noise = privacy.noise * privacy.clip

    def gradient(key, pairs, batch, padding):
        # jax-privacy relies on JAX's default promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            total = summed(pairs, batch, is_padding_example=padding)
        leaves, tree = jax.tree.flatten(total)
        keys = jax.random.split(key, len(leaves))
        drawn = [noise * jax.random.normal(k, x.shape, jnp.float32) for k, x in zip(keys, leaves)]
        add = lambda x, n: ((x.astype(jnp.float32) + n) / privacy.batch).astype(x.dtype)
        return tree.unflatten([add(x, n) for x, n in zip(leaves, drawn)])

    return gradient


@takes(seen=ROW_OF_NUMBERS, unseen=ROW_OF_NUMBERS)
def audited_epsilon(
    seen: Sequence[float] | np.ndarray,
    unseen: Sequence[float] | np.ndarray,
    *,
    delta: float,
    significance: float = 0.05,
) -> float:
    """What canaries prove that ε is at least, of one run: a bound that the stated ε must exceed.

    Canaries are examples of which each was put into the training set by the toss of a coin. `seen`
    are the losses of those that were, `unseen` of the others, in any order; the lower the losses of
    `seen` beside the others, the higher ε (Steinke et al., 2023: auditing in one training run). 0
    is found where they are alike, and also where canaries are few: a hundred prove little. Losses
    of the encoded model tell what encoding leaves of it.

    Raises:
        ValueError: there are no losses, one is not finite, or `delta` or `significance` is not
            between 0 and 1.
        ImportError: jax-privacy is missing.
    """
    losses = [np.asarray(x, np.float64) for x in (seen, unseen)]
    if not all(len(x) and np.isfinite(x).all() for x in losses):
        raise ValueError("losses of canaries are none, or not finite")
    for name, value in (("delta", delta), ("significance", significance)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}, expected above 0 and less than 1")
    auditor = _package("auditing").CanaryScoreAuditor(*(-x for x in losses))
    return float(auditor.epsilon_one_run(significance, delta))


def _accountant() -> Any:
    """The accountant of privacy loss distributions, in steps of .001, which gives 4 digits of ε."""
    accounting = _package("accounting")
    config = accounting.PldAccountantConfig(value_discretization_interval=1e-3)
    return accounting.DpsgdTrainingAccountant(config)


@functools.lru_cache(maxsize=64)
def _noise(epsilon: float, delta: float, examples: int, batch: int, steps: int) -> float:
    return _package("accounting").calibrate_noise_multiplier(
        target_epsilon=epsilon,
        accountant=_accountant(),
        batch_sizes=batch,
        num_updates=steps,
        num_samples=examples,
        target_delta=delta,
    )


def _package(module: str) -> Any:
    """A module of jax-privacy."""
    import importlib

    try:
        return importlib.import_module(f"jax_privacy.{module}")
    except ImportError as error:
        raise ImportError(
            'private training wants jax_privacy: pip install "jaxmem[privacy]"'
        ) from error
