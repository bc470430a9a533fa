"""search: candidates in order, estimated and then compiled at the budget, until one fits.

A candidate has the status "fits" only after the target's compiler has compiled all its programs
under the limit; see `Candidate`.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..compiler.compile_subprocess import CompileError
from ..compiler.devices import target
from ..compiler.memory_analysis import Memory, memory
from ..core.arguments import AT_LEAST_0, ITERABLE, OPTIONAL_BYTES, POSITIVE, Kind, takes

SLACK = 1.08  # the most that an estimate exceeds the compiled peak (estimates.json: 1.07)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One choice of knobs, with the bytes and seconds that are known about it.

    `programs` holds the compiler's answer for each program, up to the first that is too large.
    `status` is "fits" (all programs were compiled at the budget), "too large" (`why` says whether
    by arithmetic, estimate or compile), "lost" (the compiler died or ran out of time), "estimated"
    (the estimate fits; no compile was asked for) or "untried" (enough other candidates fit).
    """

    knobs: Any
    status: str
    bound: int | None = None  # bytes by arithmetic
    programs: Mapping[str, Memory] = dataclasses.field(default_factory=dict, hash=False)
    why: str = ""

    @property
    def memory(self) -> Memory | None:
        """The memory of the program with the largest peak."""
        return max(self.programs.values(), key=lambda m: m.peak, default=None)

    @property
    def peak(self) -> int | None:
        """Peak bytes on one device: compiled if there is a compile, otherwise estimated."""
        return self.memory.peak if self.programs else self.bound

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of one step."""
        return self.programs["step"].seconds if "step" in self.programs else None

    def certificate(self) -> dict:
        """The proof that the candidate fits: budget, bytes, hashes of the programs, versions."""
        m = self.memory
        return {
            "device": m.device,
            "budget_bytes": m.limit,
            "peak_bytes": m.peak,
            "programs": {name: m.hash for name, m in self.programs.items()},
            "versions": m.versions,
        }


@dataclasses.dataclass(frozen=True)
class Searched:
    """Every candidate in order of preference, and the one to take: the first that fits."""

    device: str
    limit: int
    rows: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The first that fits; None if none does."""
        return next((row for row in self.rows if row.status == "fits"), None)

    @property
    def smallest(self) -> int | None:
        """The fewest bytes that any candidate needs, as far as they are known."""
        peaks = [row.peak for row in self.rows if row.peak is not None]
        return min(peaks, default=None)

    def __str__(self) -> str:
        lines = [f"{self.device}, {self.limit:,} bytes"]
        for row in self.rows:
            peak = "" if row.peak is None else f"{row.peak:,}"
            time = "" if row.seconds is None else f"{row.seconds:.4g} s"
            lines.append(f"  {row.status:<10}{peak:>18}  {time:>10}  {row.knobs}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The rows as JSON text; a row that fits has its certificate."""
        rows = [
            {"knobs": repr(r.knobs), "status": r.status, "peak_bytes": r.peak, "seconds": r.seconds}
            | ({"certificate": r.certificate()} if r.status == "fits" else {})
            for r in self.rows
        ]
        return json.dumps({"device": self.device, "limit": self.limit, "rows": rows}, indent=1)


_KNOBS = Kind(
    "a mapping from arguments of build to lists of values",
    lambda x: isinstance(x, Mapping) and all(map(ITERABLE.accepts, x.values())),
)


@takes(limit=OPTIONAL_BYTES, knobs=_KNOBS, most=POSITIVE, timeout=AT_LEAST_0)
def search(
    build: Callable[..., tuple],
    knobs: Mapping[str, Sequence],
    *,
    device: str,
    limit: int | None = None,
    most: int = 1,
    timeout: float = 600.0,
) -> Searched:
    """The knobs of your own step with which it fits, proven by the target's compiler.

    Every combination of knobs is tried in order, and the last knob changes fastest: put the values
    that you prefer first. The search ends when `most` combinations fit.

    Args:
        build: `build(**knobs)` returns (fn, args) or (fn, args, donated argument numbers), with
            abstract args.
        knobs: the values of each keyword argument of `build`.
        device: a name that `memory` takes.
        limit: bytes on one device; the device's memory by default.
        most: the number of combinations that must fit.
        timeout: seconds for one compile.

    Raises:
        ValueError: `knobs` has no combination, or none fits; then the message says the fewest bytes
            that a combination needs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> x = lambda n: (jnp.sin, (jax.ShapeDtypeStruct((n, 2**18), jnp.float32),))
        >>> found = jm.search(x, {"n": [8, 4, 2]}, device="cpu", limit=9 * 2**20)
        >>> found.chosen.knobs, [row.status for row in found.rows]
        ({'n': 4}, ['too large', 'fits', 'untried'])
    """
    names, values = list(knobs), list(knobs.values())
    choices = [dict(zip(names, choice)) for choice in itertools.product(*values)]
    if not choices:
        raise ValueError(f"the knobs {dict(knobs)} have no combination")

    def programs(choice):
        fn, args, *donated = build(**choice)
        return {"step": (fn, args, *donated)}

    on = target(device)
    if limit is None and on:
        limit = on.device.memory
    if limit is None:
        raise ValueError("the CPU has no limit of its own: give a limit, in bytes")
    if limit == 0:
        raise ValueError("limit is 0 bytes, expected at least 1")
    rows = prove(((c, None) for c in choices), programs, device, limit, most, timeout)
    searched = Searched(device, limit, tuple(rows))
    if searched.chosen is None:
        needs = searched.smallest
        least = "no candidate compiled" if needs is None else f"the smallest needs {needs:,}"
        raise ValueError(f"nothing fits {limit:,} bytes on {device}: {least}")
    return searched


def prove(
    candidates: Iterable[tuple[Any, int | None]],
    programs: Callable[[Any], Mapping[str, tuple]],
    device: str,
    limit: int,
    most: int = 1,
    timeout: float = 600.0,
    tell: Callable[[Candidate], None] = lambda row: None,
    *,
    quick: bool = False,
) -> list[Candidate]:
    """The rows of all candidates, tried in three stages until enough fit.

    Arithmetic costs nothing, the compiler's quick estimate seconds, the compile at the budget up to
    minutes. A candidate that is too large in one stage skips the later stages. A compiler process
    that dies costs its candidate only.

    Args:
        candidates: pairs of a candidate and its bytes by arithmetic, or None.
        programs: the programs of a candidate: {name: (fn, args) or (fn, args, donated numbers)}.
        device: a name that `memory` takes.
        limit: bytes on one device.
        most: the number of candidates that must fit.
        timeout: seconds for one compile.
        tell: called with each candidate that was estimated or compiled.
        quick: whether to stop at the estimate.
    """
    rows, fit = [], 0
    for choice, bound in candidates:
        if fit == most:
            rows.append(Candidate(choice, "untried", bound))
            continue
        if bound is not None and bound > limit:
            rows.append(Candidate(choice, "too large", bound, why="by arithmetic"))
            continue
        try:
            row = _stages(choice, bound, programs(choice), device, limit, timeout, quick)
        except CompileError as error:
            row = Candidate(choice, "lost", bound, why=str(error))
        fit += row.status == "fits"
        rows.append(row)
        tell(row)
    return rows


def _stages(choice, bound, programs, device, limit, timeout, quick) -> Candidate:
    """A candidate's row after the estimates of all its programs and, if they fit, the compiles."""
    stages = (True, False) if device.startswith("tpu") else (False,)
    for estimated in stages[:1] if quick else stages:
        memories = {}
        for name, (fn, args, *donated) in programs.items():
            options = dict(device=device, limit=limit, quick=estimated, timeout=timeout)
            m = memory(fn, *args, donate_argnums=donated[0] if donated else (), **options)
            memories[name] = m
            if not (m.peak <= limit * SLACK if estimated else m.fits):
                why = "by the compiler's estimate" if estimated else "by the compiler"
                return Candidate(choice, "too large", bound, memories, f"{name}: {why}")
    return Candidate(choice, "estimated" if quick else "fits", bound, memories)
