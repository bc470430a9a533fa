"""Evaluation: measures of a model's quality, size and speed, with confidence intervals."""

import dataclasses
import json
from typing import Any, Self

import numpy as np

from ..core.pictures import Picture, html_table
from ..io.json_fields import JsonFields, parse_object
from .confidence import Estimate

_ESTIMATES = ("perplexity", "dense_perplexity", "kl", "agreement", "spearman", "cosine")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The measures that `evaluate` and `evaluate_embeddings` return; `str()` is a table.

    Sizes are in bytes: `resident` of the weights, `peak` of the compiled forward pass over one
    batch (weights, logits and temporaries), `file` if the caller fills it in. KL is in nats.
    `seconds_per_token` is the median over forward passes of whole windows, without the first pass;
    it is no measure of decoding speed. For an encoder, `tokens` counts sentences, and the seconds
    are of the whole call.

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
        """By how many nats KL to the dense model is lower than `before`, over the same windows.

        The interval is of the windows' differences, so it is narrower than the two KLs' intervals.

        Raises:
            ValueError: one of the two has no KL, or they have different numbers of windows.

        Example:
            >>> a = Evaluation(8, 1, kl_by_window=(0.2, 0.5))
            >>> print(dataclasses.replace(a, kl_by_window=(0.1, 0.4)).gain(a))
            0.1  [0.1, 0.1]
        """
        then, now = before.kl_by_window, self.kl_by_window
        if then is None or now is None or len(then) != len(now):
            count = lambda windows: "none" if windows is None else len(windows)
            raise ValueError(f"KL of {count(then)} and {count(now)} windows, expected as many")
        return Estimate.of(np.subtract(then, now))

    def to_json(self) -> str:
        """Plain JSON, without the fields that are None."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The evaluation whose `to_json` returned `text`.

        Raises:
            ValueError: `text` is no JSON of an evaluation; the message names the field.
        """
        name = "the JSON text of an Evaluation"
        fields = JsonFields(parse_object(text, name), f"{name}: ")
        sizes = {k: fields.integer(k, least=0, most=2**63) for k in ("tokens", "resident")}
        sizes |= {k: fields.integer(k, None, least=0, most=2**63) for k in ("peak", "file")}
        numbers = {k: _number(fields, k) for k in ("seconds_per_token", "kl_by_window")}
        estimates = {k: _estimate(fields.object(k)) for k in _ESTIMATES if k in fields}
        fields.refuse_unread()
        return cls(**sizes, **numbers, **estimates)

    def _rows(self) -> list[tuple[str, str]]:
        """(name, value as text) of what was measured."""
        values = {k: v for k, v in vars(self).items() if v is not None and not isinstance(v, tuple)}
        formats = {int: "{:,}", float: "{:.4g}"}
        return [(k, formats.get(type(v), "{}").format(v)) for k, v in values.items()]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        return html_table(("measure", "value"), self._rows())

    def plot(self) -> Picture:
        """A picture of the quality at its size; `jaxmem.evaluation.plot` draws several together.

        Raises:
            ValueError: no quality was measured.
            ImportError: matplotlib is missing.
        """
        from .quality_plot import plot

        return plot({"": self})


def _estimate(fields: JsonFields) -> Estimate:
    return Estimate(*(_number(fields, name) for name in ("mean", "low", "high")))


def _number(fields: JsonFields, name: str) -> Any:
    """A number, or a list of numbers as a tuple; a measure may be infinite."""
    value = fields.data.get(name)
    fields.ignore(name)
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        fields.refuse(name, "a number or a list of numbers")
    return tuple(value) if isinstance(value, list) else value
