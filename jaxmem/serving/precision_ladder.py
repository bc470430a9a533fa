"""Ladder: precision and rows that follow the load, by programs that are compiled before."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..core.arguments import INTEGER, NUMBER, TREE, check_fields, takes
from ..core.byte_counts import nbytes
from ..kv_cache.page_usage import Usage
from .weight_planes import WeightPlanes


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to run: bits of the weights and of the cache, and rows at a time.

    `weight_bits` None leaves the weights as they are, and `cache_bits` None is the model's dtype.

    Raises:
        ValueError: a number that cannot be.

    Example:
        >>> Rung(rows=16, weight_bits=4, cache_bits=8)
        Rung(rows=16, weight_bits=4, cache_bits=8)
    """

    rows: int
    _: dataclasses.KW_ONLY
    weight_bits: int | None = None
    cache_bits: int | None = None

    def __post_init__(self):
        check_fields(self)
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}, expected at least 1")
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits is {self.weight_bits}, expected 2 to 8, or None")
        if self.cache_bits not in (None, 8, 4, 2):
            raise ValueError(f"cache_bits is {self.cache_bits}, expected 8, 4, 2 or None")


@dataclasses.dataclass(frozen=True)
class RungBytes:
    """What a rung takes: bytes of weights on the device, and of its program by the compiler."""

    rung: Rung
    weights: int
    arguments: int  # of the program, weights among them
    temp: int


@takes(pages=INTEGER, prefixes=INTEGER, cold=INTEGER, host=INTEGER, running=INTEGER)
def relief(
    pages: int, *, prefixes: int = 0, cold: int = 0, host: int = 0, running: int = 0
) -> dict[str, int]:
    """How many pages to free in which way, so that the cheapest way comes first.

    The order: cached prefixes are dropped, since they may never be asked for again; the caches of
    rows that wait lose precision; rows go to host memory; and at last rows are dropped that are
    read again later.

    Args:
        pages: to be freed.
        prefixes: pages that only a prefix cache holds.
        cold: pages that fewer bits would free.
        host: pages for which host memory has room.
        running: pages of rows that may be read again.

    Raises:
        ValueError: a negative number; or all together do not free so many pages.

    Example:
        >>> relief(10, prefixes=4, cold=3, host=100, running=50)
        {'prefixes': 4, 'cold': 3, 'swap': 3}
    """
    ways = {"prefixes": prefixes, "cold": cold, "swap": min(host, running), "re-read": running}
    if min(pages, prefixes, cold, host, running) < 0:
        raise ValueError(f"relief of {pages} pages by {ways}, expected numbers of at least 0")
    chosen, left = {}, pages
    for way, most in ways.items():
        most -= chosen.get("swap", 0) * (way == "re-read")  # noqa: PLW2901
        chosen[way] = min(most, left)
        left -= chosen[way]
    if left:
        raise ValueError(f"{pages} pages cannot be freed: {ways}")
    return {way: n for way, n in chosen.items() if n}


class Ladder:
    """Steps down to fewer bits and more rows under load, and up again when it is gone.

    It goes one rung down when more than `high` of the pages are taken, or when requests wait, less
    than `high` is taken and the next rung has more rows; and one rung up when less than `low` is
    taken and nobody waits. Between `low` and `high` it stays where it is, so that it does not
    swing. Weights follow: planes below the rung's bits leave the device (see `weight_bits` of
    `Rung`), and are read from host memory on the way up. The caches are the caller's, who makes
    a pool for `cache_bits` and `rows`.

    Args:
        params: weights, with leaves of `jm.Planes` where rungs have `weight_bits`. Drop your own
            reference: the bytes of planes come back only then.
        rungs: from the most precise one down.
        high: the share of pages above which it steps down.
        low: the share of pages below which it steps up.

    Raises:
        ValueError: no rungs, a rung of more bits than the one above it, more bits than the weights
            have, or not 0 < low < high <= 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"w": jm.Planes().encode(jnp.ones((64, 64)))}
        >>> rungs = [jm.Rung(2, weight_bits=8), jm.Rung(4, weight_bits=4)]
        >>> ladder = jm.Ladder(params, rungs)
        >>> run = jm.lift(lambda params, x: x @ params["w"])
        >>> inputs = lambda rung: (jax.ShapeDtypeStruct((rung.rows, 64), jnp.float32),)
        >>> ladder.compile(lambda rung: (run, inputs(rung)))
        >>> ladder.program(ladder.params, jnp.ones((2, 64))).shape
        (2, 64)
        >>> use = lambda taken: jm.pages.Usage(100, taken, 100 - taken, 0, 0, 0.0, 0.0)
        >>> [ladder.step(use(taken), 0).rows for taken in (80, 95, 80, 60)]
        [2, 4, 4, 2]
        >>> [row.weights for row in ladder.report()]
        [4352, 2304]
    """

    @takes(params=TREE, high=NUMBER, low=NUMBER)
    def __init__(
        self, params: Any, rungs: Sequence[Rung], *, high: float = 0.9, low: float = 0.7
    ) -> None:
        self.rungs, self.high, self.low = tuple(rungs), high, low
        _check(self.rungs, high, low)
        self._weights = None
        if any(rung.weight_bits is not None for rung in self.rungs):
            self._weights = WeightPlanes(params)
        self._at, self._programs, self._report = 0, {}, []
        self.params = params
        self._move(0)

    @property
    def rung(self) -> Rung:
        """The rung where it stands."""
        return self.rungs[self._at]

    @property
    def program(self) -> Callable:
        """The compiled program of the rung where it stands.

        Raises:
            RuntimeError: `compile` was not called.
        """
        if self.rung not in self._programs:
            raise RuntimeError("the ladder has no programs, call compile(build) first")
        return self._programs[self.rung]

    @property
    def host_nbytes(self) -> int:
        """Bytes of planes in host memory."""
        return 0 if self._weights is None else self._weights.host_nbytes

    @takes()
    def compile(self, build: Callable) -> None:
        """Compiles the program of every rung: no step waits for the compiler later.

        `build(rung)` returns (function, arguments): a function of the params and these arguments,
        jitted with its donation or plain, and their shapes, pools among them.
        """
        at, self._report = self._at, []
        for i, rung in enumerate(self.rungs):
            self._move(i)
            fn, args = build(rung)
            jitted = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(fn)
            compiled = jitted.lower(self.params, *args).compile()
            sizes = compiled.memory_analysis()
            self._programs[rung] = compiled
            taken = sizes.argument_size_in_bytes, sizes.temp_size_in_bytes
            self._report.append(RungBytes(rung, nbytes(self.params), *taken))
        self._move(at)

    @takes(waiting=INTEGER)
    def step(self, usage: Usage, waiting: int) -> Rung:
        """The rung to run next, at most one away; `params` and `program` are those of it.

        Args:
            usage: `jm.pages.usage(pool)`.
            waiting: requests that are not admitted yet.
        """
        share, below = usage.allocated / max(usage.capacity, 1), self.rungs[self._at + 1 :]
        lacks_rows = waiting > 0 and bool(below) and below[0].rows > self.rung.rows
        if below and (share > self.high or lacks_rows):
            self._move(self._at + 1)
        elif self._at and share < self.low and waiting <= 0:
            self._move(self._at - 1)
        return self.rung

    def report(self) -> list[RungBytes]:
        """What each rung takes, from the most precise one down; empty before `compile`."""
        return list(self._report)

    relief = staticmethod(relief)

    def _move(self, at: int) -> None:
        """Stands on a rung, with the weights that it has."""
        self._at, bits = at, self.rungs[at].weight_bits
        if self._weights is not None:
            self.params = None  # what leaves is freed before what comes takes its place
            self.params = self._weights.at(self._weights.most if bits is None else bits)


def _check(rungs: tuple[Rung, ...], high: float, low: float) -> None:
    """Refuses rungs that do not go down, and limits that are none."""
    if not rungs or not all(isinstance(rung, Rung) for rung in rungs):
        raise ValueError(f"rungs is {rungs}, expected one Rung or more")
    if not 0 < low < high <= 1:
        raise ValueError(f"low is {low} and high is {high}, expected 0 < low < high <= 1")
    bits = lambda rung: (rung.weight_bits or 16, rung.cache_bits or 16)
    for one, other in itertools.pairwise(rungs):
        if any(a < b for a, b in zip(bits(one), bits(other))) or one.rows > other.rows:
            raise ValueError(f"{other} comes below {one}, expected no more bits and no fewer rows")
        if one == other:
            raise ValueError(f"rungs has {one} twice")
