"""Planned: the recipes that were tried, which one to take, and a picture of them."""

import dataclasses
import json

from ..compiler.devices import GIB
from ..compiler.memory_analysis import Memory
from ..core.pictures import Picture, html_table, new_figure
from .price import noise, price
from .recipe import Recipe
from .search import Candidate


@dataclasses.dataclass(frozen=True)
class Planned:
    """The result of `plan`: the recipe to take, the others that were tried, and the naive baseline.

    A row that fits was compiled for the device at the limit; its certificate has the versions of
    the compiler. The baseline is bfloat16 weights, f32 optimizer state and no remat.
    """

    rows: tuple[Candidate, ...]
    baseline: Memory
    limit: int
    took: float  # seconds

    @property
    def chosen(self) -> Candidate:
        """The row of the lowest price that fits."""
        return min(self.fitting, key=lambda row: price(seconds(row), noise(row.knobs)))

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
        point = lambda row: (row.peak, seconds(row) or 0.0, noise(row.knobs))
        worse = lambda a, b: a != b and all(x >= y for x, y in zip(a, b))
        fit = self.fitting
        return [row for row in fit if not any(worse(point(row), point(x)) for x in fit)]

    def _repr_html_(self) -> str:
        taken = lambda row: "taken" if row is self.chosen else row.status
        show = lambda x, unit: "" if x is None else f"{x:.3g} {unit}"
        rows = [
            (r.knobs.summary, show(r.peak and r.peak / GIB, "GiB"), show(seconds(r), "s"), taken(r))
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
            if row.peak is not None and seconds(row) is not None:
                fits = row.status == "fits"
                color = "C2" if row is chosen else "C0" if fits else "0.6"
                axes.plot(row.peak / GIB, seconds(row), "o", color=color)
        at = (chosen.peak / GIB, seconds(chosen) or 0.0)
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
            "chosen": as_data(self.chosen),
            "rows": [as_data(row) for row in self.rows],
            "baseline": {"fits": naive.fits, "needed_bytes": naive.needed, "compiled": naive.exact},
            "versions": self.chosen.memory.versions,
            "seconds_to_plan": round(self.took, 1),
        }


def seconds(row: Candidate) -> float | None:
    """Estimated seconds of a step; to serve, of one token read and one token written per row."""
    step, prompt = row.seconds, row.programs.get("prompt")
    if step is None or prompt is None or prompt.seconds is None:
        return step
    return step + prompt.seconds / min(row.knobs.prompt, row.knobs.seq)


def as_data(row: Candidate) -> dict:
    """A row of `Planned` as plain data."""
    return {
        "status": row.status,
        "peak_bytes": row.peak,
        "compiled": row.status == "fits" or bool(row.programs and row.memory.exact),
        "seconds_estimated": seconds(row),
        "noise": noise(row.knobs),
        "recipe": json.loads(row.knobs.to_json()),
        "why": row.why,
    } | ({"certificate": row.certificate()} if row.status == "fits" else {})
