"""Trained: the model that a run made, its losses, and the memory that its step took."""

import dataclasses
import math
from typing import Any

from ..core.pictures import Picture, html_table, new_figure
from ..models import Model


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `run` made.

    `model` has the trained weights; of the task "lora" it has the frozen ones with the adapters
    attached, which `adapters` holds alone, as `base` does the frozen ones: both are None of other
    tasks. `history` has a dict for each step: its number, its loss (in nats a token; None if it was
    not finite), its learning rate, tokens a second and, where a held-out text was read, the loss of
    that. `predicted` are the bytes that the compiler said the step takes on a device besides its
    arguments; `grown` are those by which memory grew in the first step, None if the system does not
    say. `skipped` counts steps whose loss or gradient was not finite: they changed nothing.
    """

    model: Model
    adapters: Any
    base: Any
    history: tuple[dict, ...]
    skipped: int
    predicted: int
    grown: int | None

    @property
    def loss(self) -> float | None:
        """The loss of the last step, in nats a token; None if it was not finite."""
        return self.history[-1]["loss"]

    @property
    def perplexity(self) -> float | None:
        """Of the held-out text after the last step; None without one, or if it is not finite."""
        held_out = self._held_out()
        return math.exp(held_out[-1][1]) if held_out and held_out[-1][1] is not None else None

    def plot(self) -> Picture:
        """The loss against the steps, and that of the held-out text.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure = new_figure(7, 4)
        axes = figure.subplots()
        rows = [row for row in self.history if row["loss"] is not None]
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label="training")
        if held_out := self._held_out():
            finite = [(step, loss) for step, loss in held_out if loss is not None]
            axes.plot([step for step, _ in finite], [x for _, x in finite], "o-", label="held out")
            axes.legend()
        axes.set(xlabel="step", ylabel="loss, nats a token", title=self.model.source)
        return Picture(figure)

    def _held_out(self) -> list[tuple[int, float | None]]:
        """(step, loss) of each evaluation of the held-out text; None for what is not finite."""
        name = "held_out_loss"
        return [(row["step"], row[name]) for row in self.history if name in row]

    def _repr_html_(self) -> str:
        shown = [self.history[0], self.history[-1]]
        number = lambda x: "not finite" if x is None else f"{x:.4f}"
        rows = [(f"step {row['step']}", number(row["loss"])) for row in shown]
        if self.perplexity is not None:
            rows.append(("perplexity, held out", f"{self.perplexity:.4g}"))
        rows.append(("steps skipped", str(self.skipped)))
        return html_table(("", "loss"), rows, self.model.source)
