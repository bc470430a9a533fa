"""SmolLM2's block linears at 8 to 2 bits, by each solver: writes quantize_smollm2.json.

    pip install -e ".[demo]"
    python experiments/quantize_smollm2.py --text wikitext2_valid.txt --rows "4 bits.*"

The model is smollm2-135m, rotated. 128 windows of 512 tokens of the first half of TEXT calibrate,
8 windows of 1,024 of the second half measure. `--rows` picks rows by a regex of their names
("4 bits GPTQ"). A row that is in the file already is not measured again. Seconds are of encoding,
compiling included; the statistics' are apart. The peak is of the process while it encodes, with the
dense model and the statistics in it. "numpy GPTQ" is a plain loop in float64, a peer to compare to.
Tuned rows train the scales of the row before them, 120 steps of 256 tokens of the first half;
their seconds and peak are of that alone; codes are learned after that, in as many steps. Rows by
blocks calibrate each layer, on 64 windows, behind the encoded layers before it, and may then learn
its codes and scales in one pass over them. `--keep` names a directory where statistics and
encodings stay between runs. `--control` measures in another basis that is off the checkpoint's
grid: not rotated, every input channel times exp(U(-.35, .35)), undone in what writes it. Rows of
other than 8 windows, and control rows, are named so.
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import fetching
from jaxmem.models.joints import find, joints, rescaled

CALIBRATION = (128, 512)  # windows, tokens
BY_BLOCKS = 64  # windows of the rows by blocks
TOGETHER = 4  # windows a pass of the statistics
TUNING = (120, 256)  # steps, tokens of each
RATES = {8: 1e-4, 6: 3e-4, 5: 1e-3, 4: 1e-3, 3: 1e-3, 2: 3e-3}  # of tuning, by bits
LEARNING = 0.002  # of learned rounding, in steps of the grid
TUNED = "GPTQ of a weighted search, 4 turns"  # the row that tuned ones start from
LINEARS = r"layers/(attn|mlp)/.*/kernel"
FORMATS = {8: None, 6: 64, 5: 64, 4: 64, 3: 64, 2: 32}  # bits: group
METHODS = {
    "RTN": lambda codec: codec,
    "Search": jm.Search,
    "HQQ": jm.HQQ,
    "GPTQ": jm.GPTQ,
    "GPTQ of a weighted search": lambda codec: jm.GPTQ(jm.Search(codec)),
    TUNED: lambda codec: jm.GPTQ(jm.Search(codec), turns=4),
    f"{TUNED}, rank 8": lambda codec: jm.QERA(jm.GPTQ(jm.Search(codec), turns=4), 8),
}


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


def peak_of(make):
    """What `make()` gives, its seconds, and the process's peak of resident bytes meanwhile."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    found = jax.block_until_ready(make())
    seconds = time.perf_counter() - start
    status = pathlib.Path("/proc/self/status").read_text()
    return found, seconds, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def remembered(model: models.Model, ids: np.ndarray, count: int):
    """`apply` that reads the dense model's logits of each window from files; made once."""
    windows = ids[: count * 1024].reshape(-1, 1024).astype(np.int32)
    folder = tempfile.TemporaryDirectory()
    dense = jax.jit(model.apply)
    for i, row in enumerate(windows):
        np.save(f"{folder.name}/{i}.npy", dense(model.params, row[None]))

    def read(ids):
        return np.load(f"{folder.name}/{(windows == ids[0]).all(1).argmax()}.npy")

    shape = jax.ShapeDtypeStruct((1, windows.shape[1], model.config.vocab), jnp.float32)
    return lambda _, ids: jax.pure_callback(read, shape, ids), folder


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


def learn(model: models.Model, start: dict, calibration: np.ndarray) -> dict:
    """The encoded params with their codes and scales trained on the same windows."""
    tell = lambda i, loss: i % 10 or print(i, round(loss, 4), flush=True)
    how = {"loss": jm.divergence, "learning_rate": LEARNING, "progress": tell}
    return jm.learn_rounding(model.apply, model.params, start, shuffled(calibration), **how)


def by_block(model: models.Model, plan: jm.Plan, batches: np.ndarray, passes: int) -> dict:
    """The params encoded a layer at a time, each behind the encoded ones before it."""
    given = [(ids,) for ids in batches[: BY_BLOCKS // TOGETHER]]
    tell = lambda done, count: print(done, "of", count, flush=True)
    return jm.encode_by_block(model, plan, given, passes=passes, progress=tell)


def jittered(model: models.Model) -> models.Model:
    """The same function with each input channel of its linears times exp(U(-.35, .35))."""
    random = np.random.default_rng(0)
    for joint in sorted(joints(model.config), key=lambda joint: joint.of_norm):
        layers, k, _ = find(model.tensors, joint.readers[0]).shape
        jitter = random.uniform(-0.35, 0.35, (layers, k // joint.repeats))
        model = rescaled(model, {joint: np.exp(jitter).astype(np.float32)})
    return model


def started(path: pathlib.Path, model: models.Model) -> dict:
    """What the file holds, and what this run is made with."""
    found = {
        "command": "python experiments/quantize_smollm2.py --text wikitext2_valid.txt",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(fetching.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "calibration": CALIBRATION,
        "windows": 8,
        "statistics": {},
        "rows": {},
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        found |= {name: old[name] for name in ("statistics", "rows")}
    return found


def write(path: pathlib.Path, found: dict) -> None:
    """The file appears whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def row_of(model: models.Model, plan: jm.Plan, result: dict, *cost) -> dict:
    """What the table holds of one way; bits are those of the block linears, all that is stored.

    `cost` is seconds and peak bytes; nothing for what an earlier run kept.
    """
    shapes = jax.eval_shape(lambda p: jm.encode(p, plan), model.params)
    linears = [x for x in jax.tree.leaves(shapes, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
    return {
        "codec": str(next(iter(plan.values()))),
        "bits_per_weight": 8 * jm.nbytes(linears) / sum(x.size for x in linears),
        **{key: result[key] for key in ("perplexity", "kl", "agreement", "dense_perplexity")},
        **({"seconds": round(cost[0], 1), "peak_rss": cost[1]} if cost else {}),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rows", default=".*")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--control", action="store_true")
    return parser.parse_args()


def halves(path: pathlib.Path, model: models.Model) -> list[np.ndarray]:
    """Token ids of the text's first half, which calibrates, and of its second."""
    text = path.read_text(encoding="utf-8")
    parts = text[: len(text) // 2], text[len(text) // 2 :]
    encode = lambda part: model.tokenizer.encode(part, add_special_tokens=False).ids
    return [np.asarray(encode(part)) for part in parts]


def marked(args: argparse.Namespace) -> str:
    """What the name of a row ends with."""
    others = f", {args.windows} windows" if args.windows != 8 else ""
    return others + (", control" if args.control else "")


def main() -> None:
    args = arguments()
    path = pathlib.Path(__file__).with_suffix(".json")
    plain, mark = models.load("smollm2-135m"), marked(args)
    found = started(path, models.rotate(plain))
    model = jittered(plain) if args.control else models.rotate(plain)
    calibration, ids = halves(args.text, model)
    batches = calibration[: math.prod(CALIBRATION)].reshape(-1, TOGETHER, CALIBRATION[1])
    known, stats = {}, {}
    basis = " control" * args.control
    name_of = lambda plan: str(next(iter(plan.values()))) + basis

    def measured_stats() -> dict:
        if not stats:
            run = lambda: jm.stats(model.apply, model.params, [(ids,) for ids in batches])
            made, *cost = kept(args.keep, "moments" + basis, lambda: peak_of(run))
            stats.update(made)
            if cost and not args.control:
                found["statistics"] = {"seconds": round(cost[0], 1), "peak_rss": cost[1]}
        return stats

    def add(name: str, codec, make) -> None:
        if name + mark in found["rows"] or not re.fullmatch(args.rows, name):
            return
        plan = jm.choose(model.params, {LINEARS: codec})
        tree, *cost = make(plan)
        if not known:
            known["apply"], known["folder"] = remembered(model, ids, args.windows)
        how = {"reference": (known["apply"], None), "windows": args.windows}
        result = json.loads(jm.evaluate(model.apply, jm.decode(tree), ids, **how).to_json())
        found["rows"][name + mark] = row = row_of(model, plan, result, *cost)
        write(path, found)
        print(name + mark, {key: row[key] for key in ("kl", "perplexity")}, flush=True)

    def encoded(plan):
        blind = all(str(codec).startswith(("Int", "Search", "HQQ")) for codec in plan.values())
        statistics = None if blind else measured_stats()
        make = lambda: peak_of(lambda: jm.encode(model.params, plan, stats=statistics))
        return kept(args.keep, name_of(plan), make, again=not mark)

    def tuned(plan):
        def make():
            first = lambda: [jm.encode(model.params, plan, stats=measured_stats())]
            start = kept(args.keep, name_of(plan), first)[0]
            stats.clear()
            rate = RATES[next(iter(plan.values())).codec.codec.bits]
            return peak_of(lambda: tune(model, start, calibration, rate))

        return kept(args.keep, name_of(plan) + " tuned", make)

    in_numpy = lambda plan: peak_of(lambda: by_numpy(model.params, plan, measured_stats()))

    def learned(plan):
        start = tuned(plan)[0]
        return peak_of(lambda: learn(model, start, calibration))

    def by_blocks(passes):
        make = lambda plan: lambda: peak_of(lambda: by_block(model, plan, batches, passes))
        return lambda plan: kept(args.keep, f"{name_of(plan)} by blocks {passes}", make(plan))

    for bits, group in FORMATS.items():
        codec = jm.Int(bits, group=group, symmetric=False)
        for name, method in METHODS.items():
            add(f"{bits} bits {name}", method(codec), encoded)
        add(f"{bits} bits {TUNED}, scales tuned", METHODS[TUNED](codec), tuned)
        add(f"{bits} bits {TUNED}, scales tuned, codes learned", METHODS[TUNED](codec), learned)
        for passes, how in enumerate(("by blocks", "by blocks, codes learned")):
            add(f"{bits} bits {TUNED}, {how}", METHODS[TUNED](codec), by_blocks(passes))
        add(f"{bits} bits numpy GPTQ", codec, in_numpy)


if __name__ == "__main__":
    main()
