"""plan: a recipe to train, tune or serve a model on a device, proven by that device's compiler."""

import dataclasses
import json
import pathlib
from typing import Annotated, Literal

from tyro.conf import arg

import jaxmem as jm

from ..compiler.memory_breakdown import plot
from ..io.atomic import write_whole
from ..planner.planner import kept, seconds
from ..planner.price import TOLERANCE, noise
from ..planner.search import Candidate
from . import options
from .output import Output
from .sizes import Size

MOST_ROWS = 6  # of those too large


@dataclasses.dataclass(frozen=True)
class Plan:
    """Finds what fits a device, and proves it with the device's compiler; no device is needed.

    Reads no weights. Compilers for a TPU come with the extra `tpu`; it takes minutes for a large
    model, and what was compiled once is remembered.
    """

    model: options.ModelName
    _: dataclasses.KW_ONLY
    device: Annotated[str, arg(metavar="DEVICE")]
    """Such as "tpu v5e:1x1", "tpu v5p:2x2x1", "gpu h100" or cpu."""
    task: Literal["train", "lora", "serve"]
    """All weights; adapters beside frozen ones; or generation with a KV cache."""
    batch: Annotated[int, arg(metavar="N")]
    """Rows of a step, over all chips."""
    seq: Annotated[int, arg(metavar="N")]
    """Tokens of a row; to serve, those that the cache holds."""
    limit: Annotated[Size | None, arg(metavar="SIZE")] = None
    """The most that one device may take: 15GB, 12GiB or a number of bytes; all that it has
    unless given."""
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """Where to write the recipe, which `jaxmem.build` turns into the step."""
    plot: Annotated[str | None, arg(metavar="FILE")] = None
    """Where to draw what the taken recipe's bytes are for, as a PNG."""
    json: options.Json = False

    def run(self, output: Output) -> dict:
        """The rows and the one that is taken, which `output` shows as tables."""
        for path in map(pathlib.Path, filter(None, (self.out, self.plot))):
            if not path.parent.is_dir():
                raise FileNotFoundError(f"no directory {path.parent} to write {path.name} in")
        how = {"device": self.device, "task": self.task, "batch": self.batch, "seq": self.seq}
        with output.step("planning"):
            tell = lambda row: output.note(f"  {row.status:<10} {_gib(row.peak):>9}  {name(row)}")
            found = jm.plan(self.model, **how, limit=self.limit, tell=tell)
        show(output, found)
        parts = jm.build(found.recipe).parts
        made = {name: jm.breakdown(m, parts) for name, m in found.chosen.programs.items()}
        fullest = max(made.values(), key=lambda each: sum(each.parts.values()))
        output.say(f"What it takes, {fullest}")
        residuals = kept(found.recipe)
        if residuals:
            rows = [(f"remat {kind}", _gib(n)) for kind, n in residuals.items()]
            output.table("What a micro-batch keeps for its backward pass", ("", "kept"), rows)
        if self.out:
            write_whole(pathlib.Path(self.out), (found.recipe.to_json() + "\n").encode())
            output.say(f"\nThe recipe is in {self.out}.")
        if self.plot:
            plot(made, self.plot, found.limit)
            output.say(f"\nDrawn in {self.plot}.")
        parts = {name: json.loads(each.to_json()) for name, each in made.items()}
        more = {"out": self.out, "parts": parts, "residuals": residuals}
        return {"model": self.model} | how | found.to_data() | more


def show(output: Output, found: jm.Planned) -> None:
    """The rows that fit and none beats, the one to take and why, and what the others would need."""
    chosen = found.chosen
    rows = [
        (
            name(row),
            _gib(row.peak),
            _seconds(row),
            f"{noise(row.knobs):.2%}",
            "taken" if row is chosen else "",
        )
        for row in sorted(found.pareto, key=lambda row: row.peak)
    ]
    versions = ", ".join(f"{k} {v}" for k, v in chosen.memory.versions.items())
    serve = chosen.knobs.task == "serve"
    what = "of reading one token a row and writing one" if serve else "of a step"
    output.table(
        f"{chosen.knobs.device}: compiled to fit {_gib(found.limit)} a device ({versions})",
        ("recipe", "peak", "seconds", "noise", ""),
        rows,
        f"seconds: {what}, an estimate from flops and traffic over published peaks. noise: the "
        "error that encodings add, relative to what they encode. Taken is the least of "
        f"seconds · (1 + noise / {TOLERANCE:.0%}).",
    )
    larger = [row for row in found.rows if row.status == "too large" and row.programs]
    larger = sorted(larger, key=lambda row: row.peak)[:MOST_ROWS]
    needs = [(name(row), _gib(row.peak), _how(row.memory)) for row in larger]
    plain = "bfloat16 throughout" if serve else "bfloat16, float32 state, everything kept"
    needs.append((f"the plain way: {plain}", _gib(found.baseline.needed), _how(found.baseline)))
    output.table("What others would need", ("recipe", "peak", ""), needs)


def name(row: Candidate) -> str:
    """The choices of a row's recipe, in a line.

    Example:
        >>> import jaxmem as jm
        >>> recipe = jm.Recipe("llama-8b", "cpu", "serve", 1, 64, encoding=jm.Int(8))
        >>> name(Candidate(recipe, "fits"))
        'int8, cache of 16 bits, prompts by 64'
        >>> name(Candidate(jm.Recipe("llama-8b", "tpu v5e:2x4", "train", 8, 2048), "fits"))
        'float32 state, remat full, fsdp 8'
    """
    r = row.knobs
    codec = r.encoding
    weights = codec or "bfloat16"
    if isinstance(codec, jm.Int):
        weights = f"int{codec.bits}" + (f" g{codec.group}" if codec.group else "")
    if r.task == "serve":
        parts = [f"{weights}", f"cache of {r.cache_bits} bits", f"prompts by {r.prompt}"]
    else:
        parts = [f"{weights}" if r.task == "lora" else "", f"{r.state} state"]
        parts += [f"remat {r.remat.kind}", f"{r.micro} micro-batches" if r.micro > 1 else ""]
        parts += ["state on the host" if r.offload else ""]
    parts.append(" x ".join(f"{axis} {size}" for axis, size in r.axes.items()))
    parts.append("" if r.shared else "weights not divided over fsdp")
    return ", ".join(filter(None, parts))


def _gib(nbytes: int | None) -> str:
    return "?" if nbytes is None else f"{nbytes / 2**30:.2f} GiB"


def _how(memory: jm.Memory) -> str:
    return ("compiled" if memory.exact else "estimated") + (", fits" if memory.fits else "")


def _seconds(row: Candidate) -> str:
    found = seconds(row)
    return "?" if found is None else f"{found:.3g}"
