"""Structured removal on smollm2-135m, and what a short distillation gives back: structured.json.

    pip install -e ".[demo]"
    python experiments/quality/structured.py --text wikitext2_valid.txt --moments moments.jm \
        [--steps 160]

MOMENTS is what prune_smollm2.py keeps: the Gram matrices of the first half of TEXT, on which the
student also learns; the second half measures. `removed` counts parameters against the tied model's
134.5M. The rows of `width` have an untied head, which a turned stream wants. Speed is tokens a
second over the dense model's, of runs that take turns. `--rows` picks rows by a regex of their
names ("neurons 1017"); one that is in the file is not measured again.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.models import downloading

SIZES = {  # what is left, or how many layers go, at -20, -10 and -30 % where that can be reached
    "neurons": [1017, 1276, 757],
    "layers": [8, 4, 11],
    "width": [381, 428, 333],
    "neurons and layers": [(1276, 4), (1017, 4)],
    "query heads": [6, 3],
    "head groups": [2, 1],
}
DISTILLED = [("neurons and layers", (1276, 4)), ("neurons", 1017), ("layers", 8), ("width", 381)]
BATCH = (1, 256)
JUDGED = (1, 128)  # rows and tokens that the layers are chosen by
PROMPT, ROUNDS = 128, 11
RATE = 1e-4


def smaller(model, stats: dict, how: str, size, order) -> jm.models.Model:
    if how == "neurons":
        return jm.remove_neurons(model, size, stats)
    if how == "query heads":
        return jm.remove_heads(model, stats, heads=size)
    if how == "head groups":
        return jm.remove_heads(model, stats, kv_heads=size)
    if how == "layers":
        return jm.remove_layers(model, order(size))
    if how == "width":
        return jm.remove_width(model, size, stats)
    return jm.remove_layers(jm.remove_neurons(model, size[0], stats), order(size[1]))


def parameters(model) -> int:
    return sum(x.size for x in jax.tree.leaves(model.params))


def distilled(teacher, student, ids: np.ndarray, steps: int):
    """The student after `steps` of Adam on half the labels' and half the teacher's loss."""
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, max(steps // 10, 1), steps))
    rows, length = BATCH

    @jax.jit
    def step(params, state, batch, known):
        labels = batch[:, 1:]
        logits = lambda p: student.apply(p, batch)[:, :-1]
        loss = lambda p: jm.distillation(logits(p), known[:, :-1], labels, alpha=0.5)
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    run = jax.jit(teacher.apply)
    params, state = student.params, tx.init(student.params)
    for i in range(steps):
        start = i * rows * length % (len(ids) - rows * length)
        batch = jnp.asarray(ids[start : start + rows * length]).reshape(rows, length)
        params, state, value = step(params, state, batch, run(teacher.params, batch))
        if i % 10 == 0:
            print("step", i, float(value), flush=True)
    return jm.models.Model(student.config, params, student.tokenizer, student.source)


def speed(dense, other) -> dict:
    """Tokens a second against the dense model's: a prompt of 128, and one token at a time."""
    ids = jnp.arange(PROMPT)[None]

    def runs(model):
        read = jax.jit(model.apply).lower(model.params, ids).compile()
        cache = model.config.cache(1, 64)
        one = jax.jit(lambda p, i, c: model.apply(p, i, cache=c, position=8)[0])
        one = one.lower(model.params, ids[:, :1], cache).compile()
        return {
            "prompt": lambda: read(model.params, ids),
            "decode": lambda: one(model.params, ids[:, :1], cache),
        }

    both = runs(dense), runs(other)
    ratios = {"prompt": [], "decode": []}
    for _ in range(ROUNDS):
        for what, found in ratios.items():
            seconds = []
            for run in both:
                start = time.perf_counter()
                jax.block_until_ready(run[what]())
                seconds.append(time.perf_counter() - start)
            found.append(seconds[0] / seconds[1])
    return {what: statistics.median(found) for what, found in ratios.items()}


def peak(model) -> int:
    """Bytes of one pass over 512 tokens, by the TPU compiler."""
    shapes, ids = jax.eval_shape(lambda p: p, model.params), jax.ShapeDtypeStruct((1, 512), "int32")
    return jm.memory(model.apply, shapes, ids, device="tpu v5e:1x1").peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--moments", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rows", default=".*")
    parser.add_argument("--steps", type=int, default=160, help="of distillation, for some rows")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("smollm2-135m")
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(model.tokenizer.encode(t, add_special_tokens=False).ids)
    learned, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    found = {
        "command": f"python experiments/quality/structured.py --text {args.text.name} "
        "--moments moments.jm",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "rows": [],
    }
    if path.exists():
        found |= json.loads(path.read_text(encoding="utf-8")) | {"command": found["command"]}

    def save() -> None:
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)

    def order(count: int) -> list[int]:
        if "layers_in_order" not in found:
            judged = jnp.asarray(learned[: math.prod(JUDGED)]).reshape(JUDGED)
            found["layers_in_order"] = jm.least_missed(model, max(SIZES["layers"]), judged)
            save()
        return found["layers_in_order"][:count]

    stats = jm.load(args.moments)
    text = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
    dense = jax.jit(model.apply)
    known = {"ids": text, "logits": jnp.stack([dense(model.params, w[None])[0] for w in text])}

    def look_up(known: dict, window: jax.Array) -> jax.Array:
        return known["logits"][(known["ids"] == window).all(-1).argmax()][None]

    for how, size, steps in [
        *((how, size, 0) for how, sizes in SIZES.items() for size in sizes),
        *((how, size, args.steps) for how, size in DISTILLED if args.steps),
    ]:
        key = {"removed_from": how, "left": str(size), "steps": steps, "windows": args.windows}
        known_row = any(key.items() <= row.items() for row in found["rows"])
        if known_row or not re.fullmatch(args.rows, f"{how} {size}"):
            continue
        small = smaller(model, stats, how, size, order)
        start = time.perf_counter()
        if steps:
            small = distilled(model, small, learned, steps)
        row = key | {"parameters": parameters(small), "seconds": time.perf_counter() - start}
        row["removed"] = 1 - row["parameters"] / parameters(model)
        how_measured = {"reference": (look_up, known), "windows": args.windows}
        measured = jm.evaluate(small.apply, small.params, ids, **how_measured)
        result = json.loads(measured.to_json())
        row |= {
            name: result[name] for name in ("perplexity", "dense_perplexity", "kl", "agreement")
        }
        row["speed"] = speed(model, small)
        if "dense_v5e_peak_bytes" not in found:
            found["dense_v5e_peak_bytes"] = peak(model)
        row["v5e_peak_bytes"] = peak(small)
        found["rows"].append(row)
        save()
        print(how, size, row["removed"], result["perplexity"]["mean"], row["speed"], flush=True)


if __name__ == "__main__":
    main()
