"""Planned: the recipes that were tried, which one to take, and a picture of them."""

import dataclasses
import json

from ..compiler.devices import GIB
from ..compiler.memory_analysis import Memory
from ..core.pictures import Picture, html_table, new_figure
from .equal_loss import is_measured
from .estimates import HOST
from .price import noise, price
from .recipe import Recipe
from .search import Candidate


@dataclasses.dataclass(frozen=True)
class Planned:
    """The result of `plan`: the recipe to take, the others that were tried, and the naive baseline.

    A row that fits was compiled for the device at the limit; its certificate has the versions of
    the compiler. The baseline is bfloat16 weights, f32 optimizer state and no remat. To serve,
    `read` tokens of prompts are read for each token that is written.
    """

    rows: tuple[Candidate, ...]
    baseline: Memory
    limit: int
    took: float  # seconds
    read: float = 1.0

    @property
    def chosen(self) -> Candidate:
        """The row of the lowest price that fits."""
        return min(self.fitting, key=lambda row: price(self.seconds(row), noise(row.knobs)))

    @property
    def recipe(self) -> Recipe:
        """The recipe to `build`."""
        return self.chosen.knobs

    @property
    def fitting(self) -> list[Candidate]:
        """The rows that fit, in the order they were tried."""
        return [row for row in self.rows if row.status == "fits"]

    @property
    def pareto(self) -> list[Candidate]:
        """The rows that fit and that no other beats in peak, seconds and noise at once."""
        point = lambda row: (row.peak, self.seconds(row) or 0.0, noise(row.knobs))
        worse = lambda a, b: a != b and all(x >= y for x, y in zip(a, b))
        fit = self.fitting
        return [row for row in fit if not any(worse(point(row), point(x)) for x in fit)]

    def seconds(self, row: Candidate) -> float | None:
        """Estimated seconds of a step; to serve, of all that it takes to write a token per row."""
        return step_seconds(row, self.read)

    def tokens_per_second(self, row: Candidate) -> float | None:
        """Estimated tokens a second that all rows together write; None to train."""
        seconds = self.seconds(row)
        return row.knobs.batch / seconds if seconds and row.knobs.task == "serve" else None

    def _repr_html_(self) -> str:
        taken = lambda row: "taken" if row is self.chosen else row.status
        show = lambda x, unit: "" if x is None else f"{x:.3g} {unit}"
        rows = [
            (
                r.knobs.summary,
                show(r.peak and r.peak / GIB, "GiB"),
                show(self.seconds(r), "s"),
                taken(r),
            )
            for r in self.rows
        ]
        title = f"{self.chosen.knobs.device}, {self.limit / GIB:.3g} GiB"
        return html_table(("recipe", "peak", "a step", ""), rows, title)

    def plot(self) -> Picture:
        """A picture of the tried recipes: seconds of a step against bytes, with the limit.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure = new_figure(7, 4.5)
        axes, chosen = figure.subplots(), self.chosen
        for row in self.rows:
            if row.peak is not None and self.seconds(row) is not None:
                fits = row.status == "fits"
                color = "C2" if row is chosen else "C0" if fits else "0.6"
                axes.plot(row.peak / GIB, self.seconds(row), "o", color=color)
        at = (chosen.peak / GIB, self.seconds(chosen) or 0.0)
        axes.annotate(chosen.knobs.summary, at, xytext=(6, 6), textcoords="offset points")
        axes.axvline(self.limit / GIB, color="black", linestyle="--", label="limit")
        for label, color in (("taken", "C2"), ("fits", "C0"), ("does not", "0.6")):
            axes.plot([], [], "o", color=color, label=label)
        axes.set(xlabel="GiB on one device", ylabel="seconds of a step, estimated")
        axes.set_title(f"{chosen.knobs.task} on {chosen.knobs.device}")
        axes.legend()
        return Picture(figure)

    def to_data(self) -> dict:
        """`chosen`, `rows` and `baseline` as plain data."""
        naive = self.baseline
        return {
            "limit_bytes": self.limit,
            "chosen": self._row_data(self.chosen),
            "rows": [self._row_data(row) for row in self.rows],
            "baseline": {"fits": naive.fits, "needed_bytes": naive.needed, "compiled": naive.exact},
            "versions": self.chosen.memory.versions,
            "seconds_to_plan": round(self.took, 1),
        }

    def _row_data(self, row: Candidate) -> dict:
        """A row as plain data."""
        return as_data(row) | {
            "seconds_estimated": self.seconds(row),
            "tokens_per_second_estimated": self.tokens_per_second(row),
        }


def step_seconds(row: Candidate, read: float = 1.0) -> float | None:
    """Estimated seconds of a step; to serve, to read `read` tokens and write one token per row.

    Bytes in host memory pass over the link to the host once to serve, twice to train.
    """
    if row.seconds is None:
        return None
    passed = lambda program: (program.host or 0) / HOST
    if row.knobs.task != "serve":
        return row.seconds + 2 * passed(row.programs["step"])
    written = row.seconds + passed(row.programs["step"])
    prompt = row.programs.get("prompt")
    if prompt is None or prompt.seconds is None:
        return written
    return written + read * (prompt.seconds + passed(prompt)) / min(row.knobs.prompt, row.knobs.seq)


def as_data(row: Candidate) -> dict:
    """A row of `Planned` as plain data."""
    return {
        "status": row.status,
        "peak_bytes": row.peak,
        "compiled": row.status == "fits" or bool(row.programs and row.memory.exact),
        "seconds_estimated": step_seconds(row),
        "noise": noise(row.knobs),
        "loss_is_measured": is_measured(row.knobs),
        "recipe": json.loads(row.knobs.to_json()),
        "why": row.why,
    } | ({"certificate": row.certificate()} if row.status == "fits" else {})
