"""Loss of forms of weights and state of an optimizer on the same data and batches: equal_loss.json.

    python experiments/quality/equal_loss.py --text tinyshakespeare.txt [--forms FORM ...]

A Llama of 0.91 M parameters reads 1 M characters (the first nine tenths of TEXT; the rest measures)
in 488 steps of 32 x 64. Each form is trained at two learning rates with seed 0, then with seeds 1
and 2 at the better one, and compared with Adam in f32 of the same seed. A run takes some minutes of
one core, and one that is in the file is not made again. `--seeds 8` makes more of them, `--start`
writes what `equal_loss_peers.py` starts from.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.optimizers import (
    adam_mini,
    apollo,
    apply_rounded,
    in_bfloat16,
    in_float32,
    in_int4,
    in_int8,
    scale_sgd,
    split_weights,
)

ROWS, LENGTH, STEPS = 32, 64, 488
PARTS = 4  # of a batch, whose activations stay in the caches of a processor
SIZES = dict(width=192, ffn=512, layers=2, heads=3, kv_heads=3, head_dim=64)
MATRICES = r".*(kernel|embedding)"
adam = lambda rate: optax.adam(rate, b2=0.99)
mini = lambda rate: apollo(rate, rank=1, scaled="matrix", alpha=128, b2=0.99)


def stacked_kernels(params):
    """Of each weight, which axes Muon takes as a matrix; None where it takes Adam."""
    matrix = optax.contrib.MuonDimensionNumbers(1, 2)
    return jax.tree.map(lambda x: matrix if x.ndim == 3 else None, params)


FORMS = {  # weights, the optimizer by its learning rate, the learning rates of seed 0
    "float32, Adam in float32": ("float32", lambda r: in_float32(adam(r)), (4e-3, 2e-3)),
    "bfloat16, Adam in bfloat16": ("bfloat16", lambda r: in_bfloat16(adam(r)), (4e-3, 2e-3)),
    "split, Adam in int8": ("split", lambda r: in_int8(adam(r)), (4e-3, 2e-3)),
    "bfloat16, Adam in int8": ("bfloat16", lambda r: in_int8(adam(r)), (4e-3, 2e-3)),
    "bfloat16, Adam in int4": ("bfloat16", lambda r: in_int4(adam(r)), (4e-3, 2e-3)),
    "bfloat16, SCALE": ("bfloat16", lambda r: scale_sgd(r, b2=0.99), (2e-3, 1e-3)),
    "int8, SCALE": ("int8", lambda r: scale_sgd(r, b2=0.99), (2e-3, 1e-3)),
    "bfloat16, Adam in int8, cubic": (
        "bfloat16",
        lambda r: in_int8(adam(r), code="cubic"),
        (4e-3, 2e-3),
    ),
    "split, Adam in float32": ("split", lambda r: in_float32(adam(r)), (4e-3, 2e-3)),
    "int8, Adam in int8": ("int8", lambda r: in_int8(adam(r)), (4e-3, 2e-3)),
    "bfloat16, APOLLO-mini": ("bfloat16", mini, (1e-2, 2e-2)),
    "bfloat16, Adam-mini in int8": (
        "bfloat16",
        lambda r: in_int8(adam_mini(r, b2=0.99, heads={".*/attn/[qk]/kernel": 3})),
        (4e-3, 2e-3),
    ),
    "bfloat16, Muon in int8": (
        "bfloat16",
        lambda r: in_int8(
            optax.contrib.muon(
                r,
                adam_b2=0.99,
                adam_learning_rate=lambda count: 0.2 * r(count),
                muon_weight_dimension_numbers=stacked_kernels,
            )
        ),
        (2e-2, 4e-2),
    ),
}


def tokens(text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(ids that train, ids that measure, size of the vocabulary) of characters."""
    letters = sorted(set(text))
    ids = np.searchsorted(np.array(letters), np.array(list(text))).astype(np.int32)
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(letters)


def batches(ids: np.ndarray, seed: int) -> np.ndarray:
    """(steps, rows, length + 1): windows in a random order, each read about once."""
    starts = np.random.default_rng(seed).permutation(len(ids) // LENGTH)[: STEPS * ROWS] * LENGTH
    starts = np.minimum(starts, len(ids) - LENGTH - 1)
    return ids[starts[:, None] + np.arange(LENGTH + 1)].reshape(STEPS, -1, LENGTH + 1)


def windows(ids: np.ndarray) -> np.ndarray:
    """The first 1,536 windows, each followed by the next: what measures."""
    return ids[np.arange(1536)[:, None] * LENGTH + np.arange(LENGTH + 1)]


def start_of(config: llama.Config, seed: int) -> dict:
    module = llama.module(config)
    return module.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]


def held(params: dict, weights: str) -> dict:
    """The params in the form of the weights."""
    if weights == "split":
        return split_weights(params)
    params = jax.tree.map(lambda x: x.astype(weights if weights != "int8" else "bfloat16"), params)
    return (
        jm.encode(params, jm.choose(params, {MATRICES: jm.Int(8)})) if weights == "int8" else params
    )


@functools.cache
def programs(config: llama.Config, form: str):
    """(init of the state, a step, the loss) of a form, compiled once for all rates and seeds."""
    _, make, _ = FORMS[form]
    module = llama.module(config)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, STEPS // 10, STEPS, 0.1)
    optimizer = lambda rate: make(lambda count: rate * shape(count))

    def loss(params, ids):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        logits = module.apply({"params": params}, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    def step(params, state, ids, i, rate):
        value, slope = jm.train.accumulate(loss, PARTS)(jm.decode(params), ids)
        updates, state = optimizer(rate).update(slope, state, params)
        return apply_rounded(params, updates, i), state, value

    measure = jax.jit(lambda params, ids: loss(jm.decode(params), ids))
    return jax.jit(optimizer(1.0).init), jax.jit(step, donate_argnums=(0, 1)), measure


def train(config, form: str, rate: float, seed: int, train_ids, test_ids) -> dict:
    """The row of one run."""
    init, step, measure = programs(config, form)
    params = held(start_of(config, seed), FORMS[form][0])
    state = init(params)
    begin = time.perf_counter()
    for i, ids in enumerate(batches(train_ids, seed)):
        params, state, value = step(params, state, ids, i, rate)
    jax.block_until_ready(value)
    seconds = time.perf_counter() - begin
    parts = [float(measure(params, part)) for part in np.split(windows(test_ids), 12)]
    return {
        "form": form,
        "rate": rate,
        "seed": seed,
        "loss": statistics.fmean(parts),
        "train_loss": float(value),
        "weight_bytes": jm.nbytes(params),
        "state_bytes": jm.nbytes(state),
        "seconds": round(seconds, 1),
    }


def summary(rows: list[dict], count: int) -> list[dict]:
    """For each form the mean loss at its best rate, and its paired difference from Adam in f32."""
    best, lines = {}, []
    for row in sorted(rows, key=lambda row: (row["seed"], row["loss"])):
        best.setdefault(row["form"], row["rate"])
    losses = lambda form: {
        r["seed"]: r["loss"] for r in rows if (r["form"], r["rate"]) == (form, best[form])
    }
    exact = losses(next(iter(FORMS)))
    for form, rate in best.items():
        of_form = losses(form)
        gaps = [of_form[seed] - exact[seed] for seed in of_form if seed in exact]
        # Student's t at 95 %, for two or more pairs.
        t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}.get(len(gaps), 2.1)
        half = t * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
        row = next(r for r in rows if r["form"] == form)
        line = {"form": form, "rate": rate, "seeds": len(of_form)}
        line |= {f"{k}_bytes_a_parameter": row[f"{k}_bytes"] / count for k in ("weight", "state")}
        line |= {
            "loss": statistics.fmean(of_form.values()),
            "above_float32": statistics.fmean(gaps),
        }
        lines.append(line | {"half_interval_95": half})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json")
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM")
    parser.add_argument("--seeds", type=int, default=3, help="of each form at its better rate")
    parser.add_argument("--start", type=pathlib.Path, help="write the first params of each seed")
    arguments = parser.parse_args()
    train_ids, test_ids, vocab = tokens(arguments.text.read_text())
    config = llama.Config(vocab=vocab, **SIZES)
    if arguments.start:
        data = {"test": windows(test_ids)}
        for seed in range(arguments.seeds):
            params = start_of(config, seed)
            named = zip(jm.paths(params), jax.tree.leaves(params))
            data |= {f"{seed}/{path}": np.asarray(x) for path, x in named}
            data[f"batches{seed}"] = batches(train_ids, seed)
        np.savez(arguments.start, **data)
        return
    count = sum(x.size for x in jax.tree.leaves(start_of(config, 0)))
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    known = lambda: {(r["form"], r["rate"], r["seed"]) for r in rows}

    def run(form, rate, seed):
        if (form, rate, seed) in known():
            return
        rows.append(train(config, form, rate, seed, train_ids, test_ids))
        print(rows[-1], flush=True)
        result = {
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "model": f"Llama {SIZES}, {count} parameters, random by seed",
            "tokens": STEPS * ROWS * LENGTH,
            "text": arguments.text.name,
            "rows": rows,
            "summary": summary(rows, count),
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    for form in arguments.forms:
        for rate in FORMS[form][2]:
            run(form, rate, 0)
        first = [r for r in rows if r["form"] == form and r["seed"] == 0]
        for seed in range(1, arguments.seeds):
            run(form, min(first, key=lambda r: r["loss"])["rate"], seed)


if __name__ == "__main__":
    main()
