"""Structured removal on smollm2-135m, and what a short distillation gives back: structured.json.

    pip install -e ".[demo]"
    python experiments/quality/structured.py --text wikitext2_valid.txt --moments moments.jm \
        [--steps 160]

MOMENTS is the file that prune_smollm2.py writes: the Gram matrices of the first half of TEXT, on
which the student also learns; the second half measures. `removed` counts parameters against the
tied model's 134.5M. The rows of `width` have an untied head, which a rotated stream needs. Speed is
tokens a second over the dense model's, of runs that take turns. `--rows` picks rows by a regex of
their names ("neurons 1017"); a row that is in the file is not measured again.
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

SIZES = {  # sizes left, or numbers of layers removed, for about -20, -10 and -30 % of parameters
    "neurons": [1017, 1276, 757],
    "layers": [8, 4, 11],
    "width": [381, 428, 333],
    "neurons and layers": [(1276, 4), (1017, 4)],
    "query heads": [6, 3],
    "head groups": [2, 1],
}
DISTILLED = [("neurons and layers", (1276, 4)), ("neurons", 1017), ("layers", 8), ("width", 381)]
DISTILLATION_BATCH = (1, 256)  # rows, tokens
SELECTION_SHAPE = (1, 128)  # rows, tokens that the layers are chosen by
PROMPT_TOKENS, ROUNDS = 128, 11
RATE = 1e-4


def remove_structures(model, stats: dict, removed: str, size, layers_to_remove) -> jm.models.Model:
    if removed == "neurons":
        return jm.remove_neurons(model, size, stats)
    if removed == "query heads":
        return jm.remove_heads(model, stats, heads=size)
    if removed == "head groups":
        return jm.remove_heads(model, stats, kv_heads=size)
    if removed == "layers":
        return jm.remove_layers(model, layers_to_remove(size))
    if removed == "width":
        return jm.remove_width(model, size, stats)
    return jm.remove_layers(jm.remove_neurons(model, size[0], stats), layers_to_remove(size[1]))


def parameter_count(model) -> int:
    return sum(x.size for x in jax.tree.leaves(model.params))


def distill(teacher, student, ids: np.ndarray, steps: int):
    """The student after `steps` of Adam; half the loss is on labels, half on teacher logits."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, max(steps // 10, 1), steps)
    optimizer = optax.adam(schedule)
    rows, length = DISTILLATION_BATCH

    @jax.jit
    def step(params, state, batch, teacher_logits):
        labels = batch[:, 1:]
        logits = lambda p: student.apply(p, batch)[:, :-1]
        loss = lambda p: jm.distillation(logits(p), teacher_logits[:, :-1], labels, alpha=0.5)
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    run = jax.jit(teacher.apply)
    params, state = student.params, optimizer.init(student.params)
    for i in range(steps):
        start = i * rows * length % (len(ids) - rows * length)
        batch = jnp.asarray(ids[start : start + rows * length]).reshape(rows, length)
        params, state, value = step(params, state, batch, run(teacher.params, batch))
        if i % 10 == 0:
            print("step", i, float(value), flush=True)
    return jm.models.Model(student.config, params, student.tokenizer, student.source)


def speed_ratios(dense, smaller) -> dict:
    """Tokens a second over the dense model's: for a prompt of 128, and one token at a time."""
    ids = jnp.arange(PROMPT_TOKENS)[None]

    def runs(model):
        run_prompt = jax.jit(model.apply).lower(model.params, ids).compile()
        cache = model.config.cache(1, 64)
        run_token = jax.jit(lambda p, i, c: model.apply(p, i, cache=c, position=8)[0])
        run_token = run_token.lower(model.params, ids[:, :1], cache).compile()
        return {
            "prompt": lambda: run_prompt(model.params, ids),
            "decode": lambda: run_token(model.params, ids[:, :1], cache),
        }

    both_runs = runs(dense), runs(smaller)
    ratios = {"prompt": [], "decode": []}
    for _ in range(ROUNDS):
        for task, task_ratios in ratios.items():
            seconds = []
            for run in both_runs:
                start = time.perf_counter()
                jax.block_until_ready(run[task]())
                seconds.append(time.perf_counter() - start)
            task_ratios.append(seconds[0] / seconds[1])
    return {task: statistics.median(task_ratios) for task, task_ratios in ratios.items()}


def peak_bytes(model) -> int:
    """Peak bytes of one pass over 512 tokens, by the TPU compiler."""
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
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    results = {
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
        results |= json.loads(path.read_text(encoding="utf-8")) | {"command": results["command"]}

    def save() -> None:
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)

    def layers_to_remove(count: int) -> list[int]:
        if "layers_in_order" not in results:
            selection_ids = calibration[: math.prod(SELECTION_SHAPE)].reshape(SELECTION_SHAPE)
            results["layers_in_order"] = jm.least_missed(
                model, max(SIZES["layers"]), jnp.asarray(selection_ids)
            )
            save()
        return results["layers_in_order"][:count]

    stats = jm.load(args.moments)
    text = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
    dense = jax.jit(model.apply)
    table = {"ids": text, "logits": jnp.stack([dense(model.params, w[None])[0] for w in text])}

    def look_up(table: dict, window: jax.Array) -> jax.Array:
        return table["logits"][(table["ids"] == window).all(-1).argmax()][None]

    for removed, size, steps in [
        *((removed, size, 0) for removed, sizes in SIZES.items() for size in sizes),
        *((removed, size, args.steps) for removed, size in DISTILLED if args.steps),
    ]:
        key = {"removed_from": removed, "left": str(size), "steps": steps, "windows": args.windows}
        is_measured = any(key.items() <= row.items() for row in results["rows"])
        if is_measured or not re.fullmatch(args.rows, f"{removed} {size}"):
            continue
        small = remove_structures(model, stats, removed, size, layers_to_remove)
        start = time.perf_counter()
        if steps:
            small = distill(model, small, calibration, steps)
        row = key | {"parameters": parameter_count(small), "seconds": time.perf_counter() - start}
        row["removed"] = 1 - row["parameters"] / parameter_count(model)
        options = {"reference": (look_up, table), "windows": args.windows}
        evaluation = jm.evaluate(small.apply, small.params, ids, **options)
        scores = json.loads(evaluation.to_json())
        row |= {
            name: scores[name] for name in ("perplexity", "dense_perplexity", "kl", "agreement")
        }
        row["speed"] = speed_ratios(model, small)
        if "dense_v5e_peak_bytes" not in results:
            results["dense_v5e_peak_bytes"] = peak_bytes(model)
        row["v5e_peak_bytes"] = peak_bytes(small)
        results["rows"].append(row)
        save()
        print(removed, size, row["removed"], scores["perplexity"]["mean"], row["speed"], flush=True)


if __name__ == "__main__":
    main()
