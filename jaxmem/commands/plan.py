"""The command plan: a recipe for a device, which that device's compiler proves to fit."""

import dataclasses
import json
import pathlib
from typing import Annotated, Literal

from tyro.conf import arg

import jaxmem as jm

from ..compiler.memory_breakdown import plot
from ..io.atomic import write_whole
from ..planner.equal_loss import is_measured
from ..planner.page_load import read_load
from ..planner.planner import kept
from ..planner.price import TOLERANCE, noise
from . import options
from .output import Output
from .output_path import check_out_file
from .sizes import Size

LARGER_ROWS = 6  # recipes that are too large, shown at most


@dataclasses.dataclass(frozen=True)
class Plan(options.CommonOptions):
    """Finds a recipe that fits a device, and proves it with the device's compiler.

    No device is needed and no weights are read. The compiler for TPUs comes with the extra `tpu`.
    Planning takes minutes for a large model; compiled programs are kept in the cache.
    """

    model: options.ModelName
    _: dataclasses.KW_ONLY
    device: Annotated[str, arg(metavar="DEVICE")]
    """A device such as "tpu v5e:1x1", "tpu v5p:2x2x1", "gpu h100" or cpu."""
    task: Literal["train", "lora", "serve"]
    """Train all weights, train adapters beside frozen weights, or generate with a KV cache."""
    batch: Annotated[int, arg(metavar="N")]
    """Rows of a step, on all chips together."""
    seq: Annotated[int, arg(metavar="N")]
    """Tokens of a row; to serve, tokens of a row that the cache holds."""
    limit: Annotated[Size | None, arg(metavar="SIZE")] = None
    """The most memory to use on one device: 15GB, 12GiB or a number of bytes. By default all of
    the device's memory."""
    load: Annotated[str | None, arg(metavar="FILE")] = None
    """To serve: a CSV file with columns ContextTokens and GeneratedTokens, one request a line. The
    cache is then a pool of as many pages as --batch rows of such requests need."""
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """The file to write the recipe to, which `jaxmem.build` turns into the step."""
    plot: Annotated[str | None, arg(metavar="FILE")] = None
    """The PNG file to draw the chosen recipe's bytes in, by part."""

    def run(self, output: Output) -> dict:
        """The tried recipes and the chosen one as plain data; `output` shows them as tables."""
        for path in filter(None, (self.out, self.plot)):
            check_out_file(path)
        options = {"device": self.device, "task": self.task, "batch": self.batch, "seq": self.seq}
        load = read_load(self.load) if self.load else None
        with output.step("planning"):
            tell = lambda row: output.note(
                f"  {row.status:<10} {_gib(row.peak):>9}  {row.knobs.summary}"
            )
            planned = jm.plan(self.model, **options, load=load, limit=self.limit, tell=tell)
        show(output, planned)
        parts = jm.build(planned.recipe).parts
        breakdowns = {name: jm.breakdown(m, parts) for name, m in planned.chosen.programs.items()}
        fullest = max(breakdowns.values(), key=lambda b: sum(b.parts.values()))
        output.say(f"What it takes, {fullest}")
        residuals = kept(planned.recipe)
        if residuals:
            rows = [(f"remat {kind}", _gib(n)) for kind, n in residuals.items()]
            output.table("What a micro-batch keeps for its backward pass", ("", "kept"), rows)
        if load:
            rows = self.batch * -(-self.seq // 64)
            output.say(
                f"\n{self.batch:,} rows of the load take {planned.recipe.pages:,} pages of 64 "
                f"tokens in 99 % of steps; caches of {self.seq:,} tokens a row would take {rows:,}."
            )
        if self.out:
            write_whole(pathlib.Path(self.out), (planned.recipe.to_json() + "\n").encode())
            output.say(f"\nThe recipe is in {self.out}.")
        if self.plot:
            plot(breakdowns, self.plot, planned.limit)
            output.say(f"\nDrawn in {self.plot}.")
        parts = {name: json.loads(b.to_json()) for name, b in breakdowns.items()}
        more = {"out": self.out, "load": self.load, "parts": parts, "residuals": residuals}
        return {"model": self.model} | options | planned.to_data() | more


def show(output: Output, planned: jm.Planned) -> None:
    """Prints the Pareto rows with the chosen one, and the bytes that larger recipes need."""
    chosen = planned.chosen
    serve = chosen.knobs.task == "serve"
    rows = [
        (
            row.knobs.summary,
            _gib(row.peak),
            _number(planned.seconds(row)),
            *([_number(planned.tokens_per_second(row))] if serve else []),
            f"{noise(row.knobs):.2%}" + ("" if is_measured(row.knobs) else " + ?"),
            "taken" if row is chosen else "",
        )
        for row in sorted(planned.pareto, key=lambda row: row.peak)
    ]
    unmeasured = not all(is_measured(row.knobs) for row in planned.pareto)
    versions = ", ".join(f"{k} {v}" for k, v in chosen.memory.versions.items())
    step = f"of reading {planned.read:.3g} tokens a row and writing one" if serve else "of a step"
    output.table(
        f"{chosen.knobs.device}: compiled to fit {_gib(planned.limit)} a device ({versions})",
        ("recipe", "peak", "seconds", *(["tokens/s"] if serve else []), "noise", ""),
        rows,
        f"seconds: {step}, an estimate from flops and traffic over published peaks. noise: the "
        "error that encodings add, relative to what they encode, and the loss that forms of "
        "training cost, in nats a token. Taken is the least of "
        f"seconds · (1 + noise / {TOLERANCE:.0%})."
        + (
            " ?: what this form costs in loss was not measured, and counts 0." if unmeasured else ""
        ),
    )
    larger = [row for row in planned.rows if row.status == "too large" and row.programs]
    larger = sorted(larger, key=lambda row: row.peak)[:LARGER_ROWS]
    needs = [
        (row.knobs.summary, _gib(row.peak), _compiled_or_estimated(row.memory)) for row in larger
    ]
    plain = "bfloat16 throughout" if serve else "bfloat16, float32 state, everything kept"
    needs.append(
        (
            f"the plain way: {plain}",
            _gib(planned.baseline.needed),
            _compiled_or_estimated(planned.baseline),
        )
    )
    output.table("What others would need", ("recipe", "peak", ""), needs)


def _gib(nbytes: int | None) -> str:
    return "?" if nbytes is None else f"{nbytes / 2**30:.2f} GiB"


def _compiled_or_estimated(memory: jm.Memory) -> str:
    return ("compiled" if memory.exact else "estimated") + (", fits" if memory.fits else "")


def _number(estimate: float | None) -> str:
    return "?" if estimate is None else f"{estimate:.3g}"
