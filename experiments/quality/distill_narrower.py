"""A fifth of smollm2-135m removed, and what each loss gives back: distill_narrower.json.

    pip install -e ".[demo]"
    python experiments/quality/distill_narrower.py --text wikitext2_valid.txt [--rows REGEX]

The student has 1,017 neurons in each MLP in place of 1,536, those that 16 windows of 128 tokens say
(`jm.remove_neurons`); the whole model is its teacher. With each loss it takes 160 steps of Adam, on
one window of 128 tokens each, drawn from the first half of TEXT. "hidden" are the outputs of all
layers, "attention" the scores of all heads, "relations" how the queries, keys and values of the
last layer relate. The second half measures, in 64 windows of 128 tokens: perplexity, and the KL of
the student from the teacher. A row that is in the file is not measured again.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from layer_states import layers_of, scores_of

import jaxmem as jm
from jaxmem.io.atomic import write_whole
from jaxmem.models import downloading

NEURONS, STEPS, WIDTH, RATE, SEED, WINDOWS = 1017, 160, 128, 1e-4, 0, 64
PATH = pathlib.Path(__file__).with_suffix(".json")
BY_LOGITS = {
    "forward KL": jm.train.teacher_divergence(),
    "reverse KL": jm.train.teacher_divergence(kind="reverse"),
    "Jensen-Shannon": jm.train.teacher_divergence(kind="jsd"),
}
BY_LAYERS = ("hidden", "attention", "relations")


def layer_loss(name, model, student, teacher, ids):
    """The loss between what layers of two models with these params compute."""
    mine, whole = (layers_of(m, p, ids) for m, p in (student, teacher))
    if name == "hidden":
        outputs = (x[0].reshape(1, -1, x[0].shape[-1]) for x in (mine, whole))
        return jm.train.hidden_loss(*outputs)
    if name == "attention":
        is_past = jnp.broadcast_to(
            jnp.tri(ids.shape[1], dtype=bool), (len(mine[0]), 1, *[ids.shape[1]] * 2)
        )
        return jm.train.attention_loss(
            *(scores_of(model, *x[1:3]) for x in (mine, whole)), mask=is_past
        )
    heads = model.config.kv_heads
    pairs = zip(mine[1:], whole[1:])
    return sum(jm.train.relation_loss(a[-1], b[-1], heads=heads, causal=True) for a, b in pairs)


def distilled(name, teacher, student, rows):
    """The student's params after STEPS steps with a loss."""
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, STEPS // 10, STEPS))
    said = jax.jit(teacher.apply)

    def loss(params, ids, logits):
        if name in BY_LAYERS:
            return layer_loss(name, teacher, (student, params), (teacher, teacher.params), ids)
        mine = student.apply(params, ids)
        if name == "labels":
            return jm.train.cross_entropy()(mine[:, :-1], ids[:, 1:]).mean()
        if name == "forward KL and labels":
            mixed = jm.train.distilled_cross_entropy(alpha=0.5)
            return mixed(mine[:, :-1], logits[:, :-1], ids[:, 1:]).mean()
        return BY_LOGITS[name](mine, logits).mean()

    @jax.jit
    def step(params, state, ids, logits):
        value, slope = jax.value_and_grad(loss)(params, ids, logits)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state = student.params, optimizer.init(student.params)
    for i in range(STEPS):
        ids = jnp.asarray(rows[i][None])
        logits = None if name in (*BY_LAYERS, "labels") else said(teacher.params, ids)
        params, state, value = step(params, state, ids, logits)
        if i % 20 == 0:
            print(name, i, float(value), time.strftime("%X"), flush=True)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*")
    args = parser.parse_args()
    teacher, text = jm.models.load("smollm2-135m"), args.text.read_text(encoding="utf-8")
    teacher = dataclasses.replace(teacher, tensors=jax.tree.map(jnp.float32, teacher.params))
    halves = (text[: len(text) // 2], text[len(text) // 2 :])
    first, second = (np.asarray(teacher.tokenizer.encode(x).ids, np.int32) for x in halves)
    rows = first[: len(first) // WIDTH * WIDTH].reshape(-1, WIDTH)
    rows = rows[np.random.default_rng(SEED).permutation(len(rows))[:STEPS]]
    stats = jm.stats(teacher.apply, teacher.params, [(x,) for x in rows[:16].reshape(4, 4, WIDTH)])
    student = jm.remove_neurons(teacher, NEURONS, stats)
    found = json.loads(PATH.read_text())["rows"] if PATH.exists() else {}
    size = lambda model: sum(x.size for x in jax.tree.leaves(model.params))
    results = {
        "command": "python experiments/quality/distill_narrower.py --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model": teacher.source,
        "model_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "parameters": {"teacher": size(teacher), "student": size(student)},
        "rows": found,
    }
    for name in ("not distilled", "labels", "forward KL and labels", *BY_LOGITS, *BY_LAYERS):
        if name in found or not re.fullmatch(args.rows, name):
            continue
        begin = time.perf_counter()
        params = (
            student.params if name == "not distilled" else distilled(name, teacher, student, rows)
        )
        seconds = time.perf_counter() - begin
        options = {
            "reference": (teacher.apply, teacher.params),
            "windows": WINDOWS,
            "window": WIDTH,
        }
        scores = json.loads(jm.evaluate(student.apply, params, second, **options).to_json())
        keys = ("perplexity", "dense_perplexity", "kl", "agreement")
        found[name] = {key: scores[key] for key in keys} | {"seconds": round(seconds, 1)}
        write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
        print(name, scores["perplexity"]["mean"], scores["kl"]["mean"], flush=True)


if __name__ == "__main__":
    main()
