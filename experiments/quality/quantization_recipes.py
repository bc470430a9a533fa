"""The recipes by which rows of quantize_smollm2.py are encoded, and what budget_plans.py shares.

This module is imported, not run. It splits the text, encodes, keeps results between runs, and gives
the dense model's logits, with which an encoding is compared.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models

CALIBRATION_SHAPE = (128, 512)  # windows, tokens of a window
STATISTICS_BATCH = 4  # windows in each batch of the statistics
BLOCKWISE_WINDOWS = 64  # windows that calibrate one layer at a time
TUNING_STEPS, TUNING_TOKENS = 120, 256  # a step trains on one window of so many tokens
TUNING_RATES = {8: 1e-4, 6: 3e-4, 5: 5e-4, 4: 1e-3, 3: 1e-3, 2: 3e-3}  # bits: learning rate
EMBEDDING = "embed/embedding"


def text_halves(path: pathlib.Path, model: models.Model) -> list[np.ndarray]:
    """Token ids of the text's first half, which calibrates, and of its second half."""
    text = path.read_text(encoding="utf-8")
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    encode = lambda half: model.tokenizer.encode(half, add_special_tokens=False).ids
    return [np.asarray(encode(half)) for half in halves]


def stored_logits(model: models.Model, ids: np.ndarray, count: int):
    """(An `apply` that reads the dense logits of `count` windows from files, the files' folder)."""
    windows = ids[: count * 1024].reshape(-1, 1024).astype(np.int32)
    folder = tempfile.TemporaryDirectory()
    dense = jax.jit(model.apply)
    for i, row in enumerate(windows):
        np.save(f"{folder.name}/{i}.npy", dense(model.params, row[None]))

    def read(ids):
        return np.load(f"{folder.name}/{(windows == ids[0]).all(1).argmax()}.npy")

    shape = jax.ShapeDtypeStruct((1, windows.shape[1], model.config.vocab), "float32")
    return lambda _, ids: jax.pure_callback(read, shape, ids), folder


def write_results(path: pathlib.Path, results: dict) -> None:
    """Writes the JSON file; it appears whole or not at all."""
    staged = path.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


def numpy_gptq(weight: np.ndarray, gram: np.ndarray, bits: int, group: int) -> np.ndarray:
    """One (k, n) weight as GPTQ leaves it, in float64: act order, static groups, zero points."""
    k, n = weight.shape
    group, largest_code = group or k, 2**bits - 1
    scale, zero = np.empty((2, -(-k // group), n))
    for g, start in enumerate(range(0, k, group)):
        rows = weight[start : start + group]
        low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0)
        scale[g] = ((high - low) / largest_code).astype(np.float16)
        zero[g] = np.round(-low / scale[g])
    order = np.argsort(-np.diag(gram), kind="stable")
    damped = gram[order][:, order] + 0.01 * np.diag(gram).mean() * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    remaining, rounded = weight[order].astype(np.float64), np.empty((k, n))
    for start in range(0, k, 128):
        end = min(start + 128, k)
        errors = np.empty((end - start, n))
        for j in range(start, end):
            s, z = scale[order[j] // group], zero[order[j] // group]
            rounded[j] = (np.clip(np.round(remaining[j] / s) + z, 0, largest_code) - z) * s
            errors[j - start] = (remaining[j] - rounded[j]) / upper[j, j]
            remaining[j:end] -= np.outer(upper[j, j:end], errors[j - start])
        remaining[end:] -= upper[start:end, end:].T @ errors
    return rounded[np.argsort(order)]


def encode_by_numpy(params: dict, plan: jm.Plan, stats: dict) -> dict:
    """The params, dense, with each planned weight rounded by `numpy_gptq`."""
    leaves, tree = jax.tree.flatten(params)
    for i, path in enumerate(jm.paths(params)):
        if path in plan:
            bits, group = plan[path].bits, plan[path].group
            grams = np.asarray(stats[path].second, np.float64)
            layers = [numpy_gptq(np.asarray(w), g, bits, group) for w, g in zip(leaves[i], grams)]
            leaves[i] = jnp.asarray(np.stack(layers), jnp.float32)
    return tree.unflatten(leaves)


def block_codec(plan: jm.Plan):
    """The codec of the block linears, read from the first of them."""
    return next(codec for path, codec in plan.items() if path.startswith("layers/"))


def with_cost(compute) -> tuple:
    """(What `compute()` returns, its seconds, the process's peak of resident bytes meanwhile)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel resets the peak
    start = time.perf_counter()
    tree = jax.block_until_ready(compute())
    seconds = time.perf_counter() - start
    status = pathlib.Path("/proc/self/status").read_text()
    return tree, seconds, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def cached(folder: pathlib.Path | None, name: str, compute, again: bool = False) -> tuple:
    """The tuple (tree, ...) that `compute()` returns; (tree,) alone if the folder has the tree.

    With `again` it is computed even if the folder has it.
    """
    path = folder and folder / (re.sub(r"[^\w=]+", "-", name) + ".jm")
    if path and path.exists() and not again:
        return (jm.load(path),)
    computed = compute()
    if path and not path.exists():
        jm.save(path, computed[0])
    return computed


def tuning_batches(calibration: np.ndarray) -> list[tuple]:
    """Windows of the calibration text in random order, each a batch that one step trains on."""
    length = len(calibration) // TUNING_TOKENS * TUNING_TOKENS
    rows = calibration[:length].reshape(-1, 1, TUNING_TOKENS)
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:TUNING_STEPS]]
    return [(jnp.asarray(ids),) for ids in rows]


def tune(model: models.Model, encoded: dict, calibration: np.ndarray, rate: float) -> dict:
    """The encoded params with their scales trained on windows of the calibration text."""
    progress = lambda i, loss: i % 10 or print(i, round(loss, 4), flush=True)
    options = {"learning_rate": rate, "progress": progress}
    return jm.tune(model.apply, model.params, encoded, tuning_batches(calibration), **options)


@dataclasses.dataclass
class Recipes:
    """Each method returns (params, seconds, peak bytes), or (params,) read from `folder`.

    `suffix` ends the names of the files in `folder`. `encoded` encodes again, for the seconds, if
    the codec is not in `timed_codecs`; with None it does not.
    """

    model: models.Model
    calibration: np.ndarray
    folder: pathlib.Path | None
    suffix: str
    timed_codecs: set[str] | None
    stats: dict = dataclasses.field(default_factory=dict)
    statistics_cost: dict = dataclasses.field(default_factory=dict)

    def encoded(self, plan: jm.Plan) -> tuple:
        codec = str(block_codec(plan))
        data_free = codec.startswith(("Int", "Search", "HQQ"))
        stats = None if data_free else self._stats()
        compute = lambda: with_cost(lambda: jm.encode(self.model.params, plan, stats=stats))
        again = self.timed_codecs is not None and codec not in self.timed_codecs
        return cached(self.folder, self._name(plan), compute, again)

    def tuned(self, plan: jm.Plan) -> tuple:
        encode = lambda: [jm.encode(self.model.params, plan, stats=self._stats())]
        start = lambda: cached(self.folder, self._name(plan), encode)[0]
        return self._tuned(plan, start, " tuned")

    def learned_then_tuned(self, plan: jm.Plan) -> tuple:
        return self._tuned(plan, lambda: self.by_blocks(plan, 1)[0], " by blocks 1 tuned")

    def _tuned(self, plan: jm.Plan, start, suffix: str) -> tuple:
        def compute():
            encoded = start()
            self.stats.clear()
            rate = TUNING_RATES[block_codec(plan).codec.codec.bits]
            return with_cost(lambda: tune(self.model, encoded, self.calibration, rate))

        return cached(self.folder, self._name(plan) + suffix, compute)

    def by_blocks(self, plan: jm.Plan, passes: int) -> tuple:
        """Encodes one layer at a time, with inputs that come through the encoded layers before."""
        windows, length = BLOCKWISE_WINDOWS, CALIBRATION_SHAPE[1]
        rows = self.calibration[: windows * length].reshape(-1, 1, length)
        batches = [(ids,) for ids in rows]
        progress = lambda done, count: print(done, "of", count, flush=True)
        options = {"passes": passes, "progress": progress}
        encode = lambda: jm.encode_by_block(self.model, plan, batches, **options)
        name = f"{self._name(plan)} by blocks {passes}"
        return cached(self.folder, name, lambda: with_cost(encode))

    def by_numpy(self, plan: jm.Plan) -> tuple:
        stats = self._stats()
        return with_cost(lambda: encode_by_numpy(self.model.params, plan, stats))

    def _stats(self) -> dict:
        if not self.stats:
            measure = lambda: jm.stats(self.model.apply, self.model.params, self._batches())
            moments, *cost = cached(
                self.folder, "moments" + self.suffix, lambda: with_cost(measure)
            )
            self.stats.update(moments)
            if cost:
                self.statistics_cost |= {"seconds": round(cost[0], 1), "peak_rss": cost[1]}
        return self.stats

    def _batches(self) -> list[tuple]:
        rows = self.calibration[: math.prod(CALIBRATION_SHAPE)]
        return [(ids,) for ids in rows.reshape(-1, STATISTICS_BATCH, CALIBRATION_SHAPE[1])]

    def _name(self, plan: jm.Plan) -> str:
        return str(block_codec(plan)) + self.suffix
