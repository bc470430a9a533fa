"""How quantize_smollm2.py makes each of its rows, and what it keeps of them between runs."""

import dataclasses
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models

CALIBRATION = (128, 512)  # windows, tokens
BY_BLOCKS = 64  # windows of the rows by blocks
TOGETHER = 4  # windows a pass of the statistics
TUNING = (120, 256)  # steps, tokens of each
RATES = {8: 1e-4, 6: 3e-4, 5: 5e-4, 4: 1e-3, 3: 1e-3, 2: 3e-3}  # of tuning, by bits


def numpy_gptq(weight: np.ndarray, gram: np.ndarray, bits: int, group: int) -> np.ndarray:
    """One (k, n) weight as GPTQ leaves it, in float64: act order, static groups, zero points."""
    k, n = weight.shape
    group, top = group or k, 2**bits - 1
    scale, zero = np.empty((2, -(-k // group), n))
    for g, start in enumerate(range(0, k, group)):
        part = weight[start : start + group]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        scale[g] = ((high - low) / top).astype(np.float16)
        zero[g] = np.round(-low / scale[g])
    order = np.argsort(-np.diag(gram), kind="stable")
    damped = gram[order][:, order] + 0.01 * np.diag(gram).mean() * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, found = weight[order].astype(np.float64), np.empty((k, n))
    for start in range(0, k, 128):
        end = min(start + 128, k)
        errors = np.empty((end - start, n))
        for j in range(start, end):
            s, z = scale[order[j] // group], zero[order[j] // group]
            found[j] = (np.clip(np.round(left[j] / s) + z, 0, top) - z) * s
            errors[j - start] = (left[j] - found[j]) / upper[j, j]
            left[j:end] -= np.outer(upper[j, j:end], errors[j - start])
        left[end:] -= upper[start:end, end:].T @ errors
    return found[np.argsort(order)]


def by_numpy(params: dict, plan: jm.Plan, stats: dict) -> dict:
    """The params with the planned weights as `numpy_gptq` leaves them, dense."""
    leaves, tree = jax.tree.flatten(params)
    for i, path in enumerate(jm.paths(params)):
        if path in plan:
            bits, group = plan[path].bits, plan[path].group
            grams = np.asarray(stats[path].second, np.float64)
            each = [numpy_gptq(np.asarray(w), g, bits, group) for w, g in zip(leaves[i], grams)]
            leaves[i] = jnp.asarray(np.stack(each), jnp.float32)
    return tree.unflatten(leaves)


def first_codec(plan: jm.Plan):
    """That of the block linears."""
    return next(codec for path, codec in plan.items() if path.startswith("layers/"))


def peak_of(make):
    """What `make()` gives, its seconds, and the process's peak of resident bytes meanwhile."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    found = jax.block_until_ready(make())
    seconds = time.perf_counter() - start
    status = pathlib.Path("/proc/self/status").read_text()
    return found, seconds, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def kept(folder: pathlib.Path | None, name: str, make, again: bool = False) -> tuple:
    """What `make()` gives, (tree, ...): (tree,) alone where it was kept, unless made `again`."""
    path = folder and folder / (re.sub(r"[^\w=]+", "-", name) + ".jm")
    if path and path.exists() and not again:
        return (jm.load(path),)
    made = make()
    if path and not path.exists():
        jm.save(path, made[0])
    return made


def shuffled(calibration: np.ndarray) -> list[tuple]:
    """The windows that are trained on, each a batch."""
    steps, length = TUNING
    rows = calibration[: len(calibration) // length * length].reshape(-1, 1, length)
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:steps]]
    return [(jnp.asarray(ids),) for ids in rows]


def tune(model: models.Model, start: dict, calibration: np.ndarray, rate: float) -> dict:
    """The encoded params with their scales trained on windows of the calibration text."""
    tell = lambda i, loss: i % 10 or print(i, round(loss, 4), flush=True)
    how = {"learning_rate": rate, "progress": tell}
    return jm.tune(model.apply, model.params, start, shuffled(calibration), **how)


@dataclasses.dataclass
class Ways:
    """Each method gives (params, seconds, peak bytes), or (params,) as an earlier run kept them.

    What is encoded by a codec that is not among those `timed` is made again for its seconds; never
    with None.
    """

    model: models.Model
    calibration: np.ndarray
    folder: pathlib.Path | None
    basis: str
    timed: set[str] | None
    stats: dict = dataclasses.field(default_factory=dict)
    statistics_cost: dict = dataclasses.field(default_factory=dict)

    def encoded(self, plan: jm.Plan) -> tuple:
        codec = str(first_codec(plan))
        blind = codec.startswith(("Int", "Search", "HQQ"))
        given = None if blind else self._stats()
        make = lambda: peak_of(lambda: jm.encode(self.model.params, plan, stats=given))
        again = self.timed is not None and codec not in self.timed
        return kept(self.folder, self._name(plan), make, again)

    def tuned(self, plan: jm.Plan) -> tuple:
        first = lambda: [jm.encode(self.model.params, plan, stats=self._stats())]
        start = lambda: kept(self.folder, self._name(plan), first)[0]
        return self._tuned(plan, start, " tuned")

    def learned_then_tuned(self, plan: jm.Plan) -> tuple:
        return self._tuned(plan, lambda: self.by_blocks(plan, 1)[0], " by blocks 1 tuned")

    def _tuned(self, plan: jm.Plan, start, mark: str) -> tuple:
        def make():
            first = start()
            self.stats.clear()
            rate = RATES[first_codec(plan).codec.codec.bits]
            return peak_of(lambda: tune(self.model, first, self.calibration, rate))

        return kept(self.folder, self._name(plan) + mark, make)

    def by_blocks(self, plan: jm.Plan, passes: int) -> tuple:
        """A layer at a time, each behind the encoded ones before it."""
        rows = self.calibration[: BY_BLOCKS * CALIBRATION[1]].reshape(-1, 1, CALIBRATION[1])
        given = [(ids,) for ids in rows]
        tell = lambda done, count: print(done, "of", count, flush=True)
        how = {"passes": passes, "progress": tell}
        make = lambda: peak_of(lambda: jm.encode_by_block(self.model, plan, given, **how))
        return kept(self.folder, f"{self._name(plan)} by blocks {passes}", make)

    def by_numpy(self, plan: jm.Plan) -> tuple:
        given = self._stats()
        return peak_of(lambda: by_numpy(self.model.params, plan, given))

    def _stats(self) -> dict:
        if not self.stats:
            run = lambda: jm.stats(self.model.apply, self.model.params, self._batches())
            made, *cost = kept(self.folder, "moments" + self.basis, lambda: peak_of(run))
            self.stats.update(made)
            if cost:
                self.statistics_cost |= {"seconds": round(cost[0], 1), "peak_rss": cost[1]}
        return self.stats

    def _batches(self) -> list[tuple]:
        rows = self.calibration[: math.prod(CALIBRATION)]
        return [(ids,) for ids in rows.reshape(-1, TOGETHER, CALIBRATION[1])]

    def _name(self, plan: jm.Plan) -> str:
        return str(first_codec(plan)) + self.basis
