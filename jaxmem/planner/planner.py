"""plan: the recipe of least price that the target's compiler proves to fit (see `pricing`)."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..compiler.compile_subprocess import CompileError
from ..compiler.devices import GIB, Device, target
from ..compiler.footprint import Memory, memory
from ..compiler.residuals import residuals
from ..models import Model, load
from ..train.remat_policy import Remat
from .estimates import arithmetic
from .price import noise, price
from .recipe import STATES, Recipe
from .search import SLACK, Candidate, prove
from .search_space import ENCODINGS, REMATS, kinds
from .search_space import meshes as meshes_to_try
from .step import Built, build


@dataclasses.dataclass(frozen=True)
class Planned:
    """What `plan` found: the recipe to take, the others that were tried, and the naive baseline.

    A row that fits was compiled for the device at the limit; its certificate says by what. The
    baseline is bfloat16 weights, f32 optimizer state, everything kept for the backward pass.
    """

    rows: tuple[Candidate, ...]
    baseline: Memory
    limit: int
    took: float  # seconds

    @property
    def chosen(self) -> Candidate:
        """The row of least price that fits."""
        return min(self.fitting, key=lambda row: price(seconds(row), noise(row.knobs)))

    @property
    def recipe(self) -> Recipe:
        """The recipe to `build`."""
        return self.chosen.knobs

    @property
    def fitting(self) -> list[Candidate]:
        """The rows that fit, as they were found."""
        return [row for row in self.rows if row.status == "fits"]

    @property
    def pareto(self) -> list[Candidate]:
        """The rows that fit and that no other beats in peak, seconds and noise at once."""
        point = lambda row: (row.peak, seconds(row) or 0.0, noise(row.knobs))
        worse = lambda a, b: a != b and all(x >= y for x, y in zip(a, b))
        fit = self.fitting
        return [row for row in fit if not any(worse(point(row), point(x)) for x in fit)]

    def to_data(self) -> dict:
        """`chosen`, `rows` and `baseline` as plain data."""
        held = self.baseline
        return {
            "limit_bytes": self.limit,
            "chosen": as_data(self.chosen),
            "rows": [as_data(row) for row in self.rows],
            "baseline": {"fits": held.fits, "needed_bytes": held.needed, "compiled": held.exact},
            "versions": self.chosen.memory.versions,
            "seconds_to_plan": round(self.took, 1),
        }


def plan(
    model: str | Model,
    *,
    device: str,
    task: str,
    batch: int,
    seq: int,
    limit: int | None = None,
    encodings: Sequence[Any] = ENCODINGS,
    states: Sequence[str] = tuple(STATES),
    meshes: Sequence[Mapping[str, int]] | None = None,
    most: int = 2,
    timeout: float = 600.0,
    tell: Callable[[Candidate], None] = lambda row: None,
) -> Planned:
    """Chooses encoding, cache, optimizer state, remat, offload and micro-batches to fit `device`.

    Three stages for each candidate, the cheapest first: bytes by arithmetic; the compiler's
    estimate, in seconds; a compile of every program of the step at the limit, whose answer
    counts. Recipes that differ in no more than remat, micro-batches and chunks are of a kind; a
    kind is left out where its smallest is too large, and the search ends when `most` kinds fit.
    What an estimate said of a recipe counts, by arithmetic, for one that differs in the optimizer's
    state. A state of 8 bits is tried if nothing else fits.
    Compilers run in processes of their own: one that dies or takes longer than `timeout` seconds
    costs its candidate.

    Args:
        model: what `models.load` takes, or a `Model`, which may be abstract; a Llama.
        task: "train" all weights, "lora" adapters beside frozen ones, or "serve".
        batch, seq: rows of a step, and tokens of a row (of the cache, to serve).
        limit: bytes on one device; the chip's own by default.
        encodings, states: of weights that do not move, and of the optimizer (see `Recipe`).
        tell: is called with each candidate that was estimated or compiled.

    Raises:
        ValueError: nothing fits (says the fewest bytes that were seen to), an unknown device or
            task, or a batch that the chips cannot share.
        CompileError: the compiler was lost at every candidate.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.models import Model
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> tiny = Model(config, llama.module(config), None, "tiny")
        >>> how = dict(device="cpu", task="serve", batch=1, seq=64, encodings=[jm.Int(8)])
        >>> jm.plan(tiny, limit=2**24, most=1, **how).recipe.encoding
        Int(bits=8, group=None, symmetric=True)
    """
    start = time.perf_counter()
    on = target(device)
    if on is None and limit is None:
        raise ValueError("the CPU has no limit of its own: give a limit, in bytes")
    limit = limit or on.device.memory
    name = model if isinstance(model, str) else model.source
    plain = {"remat": Remat("none"), "chunk": max(seq, 1)}
    first = Recipe(name, device, task, batch, seq, **plain)
    model = load(model) if isinstance(model, str) else model
    built = functools.lru_cache(maxsize=64)(lambda recipe: build(recipe, model=model))
    chip = on.device if on else Device(limit, 1e12, 1e11, 1e10)  # peaks of a CPU are guessed
    meshes = meshes or meshes_to_try(task, batch, on.count if on else 1) or [None]
    naive = built(dataclasses.replace(first, mesh=meshes[0]))
    guess = functools.cache(lambda r: arithmetic(r, model.config, built, chip))
    dear = lambda recipe: price(guess(recipe)[1], noise(recipe))
    programs = lambda recipe: built(recipe).programs
    tried = functools.partial(
        prove, programs=programs, device=device, limit=limit, timeout=timeout, tell=tell
    )
    rows: list[Candidate] = []
    fit = 0
    order = lambda kind: (kind[0].state == "int8", min(map(dear, kind)))
    for kind in sorted(kinds(first, encodings, states, meshes), key=order):
        if fit == most or (fit and kind[0].state == "int8"):
            break
        choices = _undominated([(r, guess(r)[0]) for r in sorted(kind, key=dear)])
        smallest = min(reversed(range(len(choices))), key=lambda i: choices[i][1])
        known = [_foreseen(*choice, rows, guess) for choice in choices]
        choices = [(r, bound or least) for (r, least), bound in zip(choices, known)]
        sure = known[smallest] is not None and known[smallest] <= limit
        found = [] if sure else tried([choices[smallest]], quick=True)
        if all(row.status == "estimated" for row in found):
            found = tried(choices)
        fit += any(row.status == "fits" for row in found)
        rows += [row for row in found if row.status != "untried"]
    if not fit:
        raise _nothing(rows, built, device, limit)
    fn, args = naive.programs["step"]
    baseline = memory(fn, *args, device=device, limit=limit, quick=True)
    return Planned(tuple(rows), baseline, limit, time.perf_counter() - start)


def _undominated(choices: list[tuple]) -> list[tuple]:
    """Of (recipe, bytes), the cheapest first, without those that a cheaper one is no larger than.

    Among recipes of one remat: by arithmetic, the bytes of two do not compare so closely.
    """
    least: dict = {}
    found = []
    for recipe, size in choices:
        if size < least.get(recipe.remat, math.inf):
            least[recipe.remat] = size
            found.append((recipe, size))
    return found


def _foreseen(recipe: Recipe, least: int, rows: list[Candidate], guess: Callable) -> int | None:
    """Bytes by what is known of a recipe that differs in the optimizer's state alone."""
    for row in rows:
        if row.programs and dataclasses.replace(row.knobs, state=recipe.state) == recipe:
            return int(row.peak / SLACK) + least - guess(row.knobs)[0]
    return None


def kept(recipe: Recipe, *, model: Model | None = None) -> dict[str, int]:
    """Bytes that the backward pass of a micro-batch keeps by each policy, before any compiler.

    On all devices together; empty to serve, which has no backward pass.
    """
    if recipe.task == "serve":
        return {}
    model = load(recipe.model) if model is None else model
    found = {}
    for policy in (cost.policy for cost in REMATS.values()):
        built = build(dataclasses.replace(recipe, remat=policy), model=model)
        state, *rest, ids = built.arguments
        rows = jax.ShapeDtypeStruct((recipe.batch // recipe.micro, recipe.seq), ids.dtype)
        found[policy.kind] = residuals(built.loss, state["params"], *rest, rows)
    return found


def seconds(row: Candidate) -> float | None:
    """Of a step, estimated; to serve, of reading one token of a prompt and writing one, a row."""
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


def _nothing(rows: list[Candidate], built: Callable[[Recipe], Built], device, limit) -> Exception:
    """Why there is no answer, with the compiler's word on the smallest candidates."""
    known = [row for row in rows if row.status != "lost"]
    if not known:
        return CompileError(f"the compiler was lost at all of {len(rows)} recipes: {rows[0].why}")
    smallest = sorted(known, key=lambda row: row.peak)[:3]
    needs = min(_needed(built(row.knobs), device) for row in smallest)
    return ValueError(
        f"nothing fits {limit:,} bytes ({limit / GIB:.2f} GiB) on {device}: the smallest of "
        f"{len(rows)} recipes needs {needs:,} ({needs / GIB:.2f} GiB)"
    )


def _needed(built: Built, device: str) -> int:
    """Bytes of the most demanding program, by the compiler's estimate."""
    found = (memory(fn, *a, device=device, quick=True) for fn, a in built.programs.values())
    return max(m.needed for m in found)
