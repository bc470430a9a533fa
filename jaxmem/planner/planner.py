"""plan: the recipe of the lowest price that the target's compiler proves to fit (see `price`)."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..compiler.compile_subprocess import CompileError
from ..compiler.devices import GIB, Device, target
from ..compiler.memory_analysis import memory
from ..compiler.residuals import residuals
from ..core.arguments import AT_LEAST_0, NAMES, OPTIONAL_BYTES, POSITIVE, Kind, takes
from ..models import Model
from ..models import load as load_model
from ..train.remat_policy import Remat
from .estimates import arithmetic
from .host_placement import host_recipes
from .model_limits import (
    cache_bits,
    check_model,
    expert_count,
    keeps_heads,
    predicts_hidden_tokens,
)
from .page_load import pages_at_load, tokens_read
from .planned import Planned
from .price import noise, price
from .recipe import Recipe
from .recipe_lists import last_resorts, recipe_lists
from .search import SLACK, Candidate, prove
from .search_space import ENCODINGS, REMATS, STATES
from .search_space import meshes as meshes_to_try
from .train_and_serve_steps import Built, build

_MESHES = Kind(
    "a list of sizes of axes, such as [{'fsdp': 8}], or None",
    lambda x: (
        x is None
        or (isinstance(x, list | tuple) and all(m is None or isinstance(m, Mapping) for m in x))
    ),
)


@takes(
    limit=OPTIONAL_BYTES,
    states=NAMES,
    weights=NAMES,
    meshes=_MESHES,
    most=POSITIVE,
    timeout=AT_LEAST_0,
)
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
    weights: Sequence[str] = ("bfloat16",),
    meshes: Sequence[Mapping[str, int]] | None = None,
    packed: bool = False,
    rank: int = 16,
    adapter: str = "lora",
    load: Sequence[tuple[int, int]] | None = None,
    most: int = 2,
    timeout: float = 600.0,
    tell: Callable[[Candidate], None] = lambda row: None,
) -> Planned:
    """Chooses encoding, cache, optimizer state, remat, micro-batches and mesh to fit `device`.

    Each candidate passes three stages, the cheapest first: bytes by arithmetic; the compiler's
    estimate, in seconds; a compile of every program of the step at the limit, which decides.
    Recipes that differ only in remat, micro-batches and chunks are one kind. A kind is skipped if
    its smallest recipe is too large, and the search ends when `most` kinds fit. If two recipes
    differ only in optimizer state, the second is not estimated again: its estimate is the first's
    plus the difference of their lower bounds. Only if nothing else fits are tried, to train: a
    state in 8 or 4 bits, then weights in int8, then the optimizer "scale"; to serve on one device:
    weights, keys and values in host memory (see `planner.host_placement`).
    Compilers run in separate processes: one that dies or takes longer than `timeout` costs its
    candidate only. Arrays are laid out by `jm.layouts` on each mesh (see `Recipe`).

    Args:
        model: a name that `models.load` takes, or a `Model`, which may be abstract; a decoder.
        device: a name that `memory` takes.
        task: "train" (all weights), "lora" (adapters beside frozen weights) or "serve".
        batch: rows of a step, on all devices together.
        seq: tokens of a row; to serve, tokens of a row that the cache holds.
        limit: bytes on one device; the device's memory by default.
        encodings: codecs to try for weights that are not trained; None is bfloat16.
        states: forms of the optimizer's state to try, of `float32`, `bfloat16`, `int8`, `int4`.
        weights: forms of weights to try, to train: of `bfloat16` and `split` (see `Recipe`).
        meshes: sizes of mesh axes to try, such as `{"fsdp": 4, "tensor": 2}`; by default
            combinations of `fsdp` and `tensor` to train, of `data` and `tensor` to serve, and of
            `data` and `expert` to serve a mixture of experts.
        packed: whether rows to train hold several texts each (see `Recipe`).
        rank: of the adapters, for the task "lora".
        adapter: "lora", "rslora", "dora", "lora-fa" or "adalora", as in `Recipe`.
        load: to serve, (tokens of the prompt, tokens generated) of requests as they come: keys and
            values are in a pool of as many pages as `batch` rows of them need (see
            `planner.page_load`), and not of `seq` tokens for every row.
        most: the number of kinds that must fit.
        timeout: seconds for one compile.
        tell: called with each candidate that was estimated or compiled.

    Raises:
        ValueError: nothing fits (the message says the fewest bytes that a recipe needs), `device`
            or `task` is unknown, no mesh of the chips divides the batch, or the model is no decoder
            or cannot do what is asked (see `build`).
        CompileError: the compiler was lost at every candidate.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.models import Model
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> tiny = Model(config, llama.module(config), None, "tiny")
        >>> options = dict(device="cpu", task="serve", batch=1, seq=64, encodings=[jm.Int(8)])
        >>> jm.plan(tiny, limit=2**24, most=1, **options).recipe.encoding
        Int(bits=8, group=None, symmetric=True)
    """
    start = time.perf_counter()
    on = target(device)
    if on is None and limit is None:
        raise ValueError("the CPU has no limit of its own: give a limit, in bytes")
    limit = on.device.memory if limit is None else limit
    if limit == 0:
        raise ValueError("limit is 0 bytes, expected at least 1")
    name = model if isinstance(model, str) else model.source
    plain = {"remat": Remat("none"), "chunk": max(seq, 1)}
    plain |= {} if load is None else {"pages": _pages(load, task, batch, seq)}
    first = Recipe(
        name, device, task, batch, seq, packed=packed, rank=rank, adapter=adapter, **plain
    )
    model = load_model(model) if isinstance(model, str) else model
    if predicts_hidden_tokens(model.config):
        raise ValueError(
            f"{name} is an encoder, whose steps are not estimated; try recipes with jm.search"
        )
    check_model(model, first)
    built = functools.lru_cache(maxsize=64)(lambda recipe: build(recipe, model=model))
    chip = on.device if on else Device(limit, 1e12, 1e11, 1e10)  # peaks of a CPU are guessed
    experts = expert_count(model.config)
    meshes = meshes or meshes_to_try(task, batch, on.count if on else 1, experts) or [None]
    naive = built(dataclasses.replace(first, mesh=meshes[0], pages=None))
    guess = functools.cache(lambda r: arithmetic(r, model.config, built, chip))
    widths = cache_bits(model.config)
    price_of = lambda recipe: price(guess(recipe)[1], noise(recipe))
    programs = lambda recipe: built(recipe).programs
    tried = functools.partial(
        prove, programs=programs, device=device, limit=limit, timeout=timeout, tell=tell
    )
    rows: list[Candidate] = []
    fit = 0  # kinds that fit
    order = lambda kind: (last_resorts(kind[0]), min(map(price_of, kind)))
    of_model = recipe_lists(first, encodings, states, meshes, widths, weights, experts == 1)
    for kind in sorted(of_model, key=order):
        if fit == most or (fit and any(last_resorts(kind[0]))):
            break
        # Within a kind: the cheapest recipe of each size, with a better bound where one is known.
        choices = _undominated([(r, guess(r)[0]) for r in sorted(kind, key=price_of)])
        smallest = min(reversed(range(len(choices))), key=lambda i: choices[i][1])
        known = [_foreseen(*choice, rows, guess) for choice in choices]
        choices = [(r, bound or least) for (r, least), bound in zip(choices, known)]
        # The smallest recipe is estimated first; if it is too large, so is the whole kind.
        sure = known[smallest] is not None and known[smallest] <= limit
        tried_rows = [] if sure else tried([choices[smallest]], quick=True)
        if all(row.status == "estimated" for row in tried_rows):
            tried_rows = tried(choices)
        fit += any(row.status == "fits" for row in tried_rows)
        rows += [row for row in tried_rows if row.status != "untried"]
    if not fit and task == "serve" and not any(meshes):
        rows += _with_host(rows, built, guess, tried, limit, model.config)
        fit = any(row.status == "fits" for row in rows)
    if not fit:
        raise _nothing(rows, built, device, limit)
    fn, args = naive.programs["step"]
    baseline = memory(fn, *args, device=device, limit=limit, quick=True)
    took = time.perf_counter() - start
    return Planned(tuple(rows), baseline, limit, took, tokens_read(load) if load else 1.0)


def _pages(load: Sequence[tuple[int, int]], task: str, batch: int, seq: int) -> int:
    """The pages that `batch` rows of a load take.

    Raises:
        ValueError: the task is not to serve, or a request is longer than `seq` tokens.
    """
    pages = pages_at_load(load, batch)
    if task != "serve":
        raise ValueError(f"load is given to {task}, expected task 'serve'")
    longer = sum(context + generated > seq for context, generated in load)
    if longer:
        raise ValueError(
            f"{longer:,} of {len(load):,} requests of load are longer than seq, {seq:,}"
        )
    return pages


def _with_host(
    rows: list[Candidate],
    built: Callable,
    guess: Callable,
    tried: Callable,
    limit: int,
    config: Any,
) -> list[Candidate]:
    """Rows of recipes that leave something in host memory, up to the first that fits.

    The cheapest are first.

    `rows` are those that did not fit; `guess` gives (lower bound, seconds) of a recipe.
    """

    def parts(recipe):
        found = built(recipe).parts
        return found if keeps_heads(config) else found | {"KV cache": None}

    kinds = host_recipes(rows, parts, limit)
    order = lambda kind: price(guess(kind[0])[1], noise(kind[0]))
    found: list[Candidate] = []
    for kind in sorted(kinds, key=order):
        if not any(row.status == "fits" for row in found):
            found += tried([(recipe, guess(recipe)[0]) for recipe in kind])
    return [row for row in found if row.status != "untried"]


def _undominated(choices: list[tuple]) -> list[tuple]:
    """The (recipe, bytes) of `choices` that are smaller than all cheaper ones of the same remat.

    `choices` has the cheapest recipe first. Recipes of different remat policies or tiles are not
    compared, because arithmetic is not accurate enough for that.
    """
    least: dict = {}
    smaller = []
    for recipe, size in choices:
        kind = recipe.remat, recipe.tile
        if size < least.get(kind, math.inf):
            least[kind] = size
            smaller.append((recipe, size))
    return smaller


def _foreseen(recipe: Recipe, least: int, rows: list[Candidate], guess: Callable) -> int | None:
    """Bytes of a recipe from a row that differs only in optimizer state; None if there is none.

    `least` is the recipe's lower bound, `guess` gives (lower bound, seconds) of a recipe.
    """
    for row in rows:
        if row.programs and dataclasses.replace(row.knobs, state=recipe.state) == recipe:
            return int(row.peak / SLACK) + least - guess(row.knobs)[0]
    return None


def kept(recipe: Recipe, *, model: Model | None = None) -> dict[str, int]:
    """{remat kind: bytes that the backward pass of a micro-batch keeps}, before any compiler.

    Bytes are those of all devices together. To serve, which has no backward pass, it is empty, and
    for a step that releases gradients, which keeps inputs of layers only.
    """
    if recipe.task == "serve" or recipe.release:
        return {}
    model = load_model(recipe.model) if model is None else model
    sizes = {}
    for policy in (cost.policy for cost in REMATS.values()):
        built = build(dataclasses.replace(recipe, remat=policy), model=model)
        state, *rest, batch = built.arguments
        count = recipe.batch // recipe.micro
        rows = jax.tree.map(
            lambda x, count=count: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), batch
        )
        sizes[policy.kind] = residuals(built.loss, state["params"], *rest, rows)
    return sizes


def _nothing(rows: list[Candidate], built: Callable[[Recipe], Built], device, limit) -> Exception:
    """The error that says why nothing fits, with the bytes that the smallest recipes need."""
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
    """Bytes of the largest program, by the compiler's estimate."""
    memories = (memory(fn, *a, device=device, quick=True) for fn, a in built.programs.values())
    return max(m.needed for m in memories)
