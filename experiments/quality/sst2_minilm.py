"""SST-2 by a classifier on minilm-l6: screen, prune, retrain, with and without a teacher.

    pip install -e ".[demo]"
    python experiments/quality/sst2_minilm.py --train sst2_train.tsv --dev sst2_dev.tsv \
        --dense dense.jm

The dense classifier is a linear layer on the mean hidden vector, trained with the encoder on
SENTENCES of the training sentences of up to 32 tokens; DENSE keeps it between runs. Screening
takes second moments of the same sentences; SparseGPT and a refit prune the block matrices to a
share of zeros, the tables and the head stay dense; one pass over the sentences retrains with the
masks held, on labels alone or on labels and the dense classifier's logits by halves. Accuracy is of
the encoded model on all of the dev set. A row that is in sst2_minilm.json is not measured again.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm

LENGTHS = (12, 16, 20, 24, 28)  # sentences of so many tokens screen: no padding is counted
BATCH, WIDTHS, SEED = 32, (20, 32), 0
DENSE_RATE, DENSE_PASSES, RATE = 1e-4, 2, 1e-4
ALPHA, TEMPERATURE = 0.5, 2.0
DENSITIES = {"80 %": 0.2, "50 %": 0.5, "90 %": 0.1}
BLOCKS = "bert/layers/.*/kernel"


def read(model, path: pathlib.Path) -> tuple[list[list[int]], np.ndarray]:
    """Tokens and labels of a file of `sentence<tab>label` lines."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    model.tokenizer.no_padding()
    model.tokenizer.no_truncation()
    ids = [e.ids for e in model.tokenizer.encode_batch([text for text, _ in rows])]
    return ids, np.array([int(label) for _, label in rows], np.int32)


def batches(ids: list[list[int]], widths, draw=None) -> list[np.ndarray]:
    """Row numbers, BATCH of about one length together; in an order of chance with `draw`."""
    found = []
    for low, high in zip((0, *widths), widths):
        rows = np.array([i for i, one in enumerate(ids) if low < len(one) <= high], int)
        if draw is not None:
            rows = draw.permutation(rows)[: len(rows) // BATCH * BATCH]
        found += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return found if draw is None else [found[i] for i in draw.permutation(len(found))]


def padded(ids: list[list[int]], rows: np.ndarray, widths) -> jax.Array:
    """(BATCH, width) tokens; padding is number 0, which no sentence holds."""
    longest = max(len(ids[i]) for i in rows)
    out = np.zeros((BATCH, next(w for w in widths if w >= longest)), np.int32)
    for own, i in zip(out, rows):
        own[: len(ids[i])] = ids[i]
    return jnp.asarray(out)


def classifier(model):
    """logits (B, 2) of params {"bert", "head"} and padded tokens."""

    def apply(params, ids):
        seen = ids != 0
        hidden = model.apply(params["bert"], ids, seen) * seen[..., None]
        mean = hidden.sum(1) / jnp.maximum(seen.sum(1, keepdims=True), 1)
        return mean @ params["head"]["kernel"] + params["head"]["bias"][None]

    return apply


def logits(apply, params, ids, widths) -> np.ndarray:
    run, out = jax.jit(apply), np.zeros((len(ids), 2), np.float32)
    for rows in batches(ids, widths):
        out[rows] = run(params, padded(ids, rows, widths))[: len(rows)]
    return out


def accuracy(apply, params, ids, labels) -> float:
    found = logits(apply, params, ids, (32, 80)).argmax(-1)
    return float((found == labels).mean())


def trained(apply, params, ids, labels, *, passes=1, rate=RATE, masks=None, teacher=None):
    """The params after `passes` passes; with `masks`, at that sparsity; with a teacher's logits."""
    draw = np.random.default_rng(SEED)
    turns = [rows for _ in range(passes) for rows in batches(ids, WIDTHS, draw)]
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, len(turns) // 10, len(turns)))
    tx = tx if masks is None else optax.chain(tx, jm.gradual(masks, begin=0, end=1))
    alpha = 0.0 if teacher is None else ALPHA
    teacher = np.zeros((len(ids), 2), np.float32) if teacher is None else teacher

    @jax.jit
    def step(params, state, ids, labels, known):
        how = {"alpha": alpha, "temperature": TEMPERATURE}
        loss = lambda p: jm.distillation(apply(p, ids), known, labels, **how)
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for rows in turns:
        given = padded(ids, rows, WIDTHS), jnp.asarray(labels[rows]), jnp.asarray(teacher[rows])
        params, state = step(params, state, *given)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "dev", "dense"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--sentences", type=int, default=1600)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("minilm-l6")
    apply = classifier(model)
    ids, labels = read(model, args.train)
    short = [i for i, one in enumerate(ids) if len(one) <= WIDTHS[-1]][: args.sentences]
    ids, labels = [ids[i] for i in short], labels[short]
    dev = read(model, args.dev)
    if not args.dense.exists():
        head = {"kernel": jnp.zeros((model.config.width, 2)), "bias": jnp.zeros(2)}
        start = {"bert": model.params, "head": head}
        how = {"passes": DENSE_PASSES, "rate": DENSE_RATE}
        jm.save(args.dense, trained(apply, start, ids, labels, **how))
    dense = jm.load(args.dense)
    found = {
        "command": " ".join(["python", "experiments/quality/sst2_minilm.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": SEED,
        "model": model.source,
        "sentences": len(ids),
        "dev_sentences": len(dev[0]),
        "dense_bytes": jm.nbytes(dense),
        "rows": [],
    }
    if path.exists():
        found |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def add(zeros: str, how: str, make) -> None:
        key = {"zeros": zeros, "retrained": how}
        if any(key.items() <= row.items() for row in found["rows"]):
            return
        start = time.perf_counter()
        params = make()
        seconds = round(time.perf_counter() - start, 1)
        row = {"bytes": jm.nbytes(params), "accuracy": accuracy(apply, params, *dev)}
        found["rows"].append(key | row | {"seconds": seconds})
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(found["rows"][-1], flush=True)

    add("none", "no", lambda: dense)
    alike = [[one for one in ids if len(one) == length][:64] for length in LENGTHS]
    stats = jm.stats(apply, dense, [(jnp.asarray(group, jnp.int32),) for group in alike])
    teacher = logits(apply, dense, ids, WIDTHS)
    for zeros, density in DENSITIES.items():
        masks = jm.choose(dense, {BLOCKS: jm.Bitmask(density)})
        solved = jm.choose(dense, {BLOCKS: jm.Refit(jm.SparseGPT(jm.Bitmask(density)))})
        pruned = jm.encode(dense, solved, stats=stats)
        add(zeros, "no", lambda: pruned)  # noqa: B023
        for how, known in {"on labels": None, "with the teacher": teacher}.items():

            def make(known=known, masks=masks, pruned=pruned):
                given = {"masks": masks, "teacher": known}
                return jm.encode(trained(apply, jm.decode(pruned), ids, labels, **given), masks)

            add(zeros, how, make)


if __name__ == "__main__":
    main()
