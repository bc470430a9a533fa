"""Evaluation: what a measurement of quality found, with its uncertainty."""

import dataclasses
import json
from typing import Self

import numpy as np

from .confidence import Estimate


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
