"""TrainingOptions: how long to train, how fast to learn, and when to look and to save."""

import dataclasses

import optax

from ..core.arguments import check_fields

WARMUP_SHARE = 0.1  # of the steps, while the learning rate rises


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How `run` trains.

    Args:
        steps: steps in all, also those of earlier runs that are continued.
        learning_rate: the highest one. It rises linearly over a tenth of the steps, from what is
            not 0, and falls as half a cosine to a tenth of itself.
        weight_decay: what AdamW takes from the weights, times the learning rate.
        clip: the most that the global norm of a gradient may be; None for any.
        evaluate_every: steps between evaluations on the held-out text; None for the end only.
        save_every: steps between checkpoints; None for the end only.
        seed: draws new weights and adapters.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> TrainingOptions(100).schedule(10)
        Array(0.0003, dtype=float32...)
    """

    steps: int
    _: dataclasses.KW_ONLY
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    clip: float | None = 1.0
    evaluate_every: int | None = None
    save_every: int | None = 100
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for name in ("steps", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a number above 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is {self.weight_decay}, expected at least 0")

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate of each step."""
        most, warmup = self.learning_rate, max(1, round(self.steps * WARMUP_SHARE))
        steps = max(warmup + 1, self.steps)
        first = most / (warmup + 1)  # a first step at a rate of 0 would learn nothing
        return optax.warmup_cosine_decay_schedule(first, most, warmup, steps, 0.1 * most)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW (Loshchilov and Hutter, 2019) with the schedule."""
        return optax.adamw(self.schedule, b2=0.95, weight_decay=self.weight_decay)
