"""SST-2 by a classifier on minilm-l6, pruned and retrained, with and without a teacher.

    pip install -e ".[demo]"
    python experiments/quality/sst2_minilm.py --train sst2_train.tsv --dev sst2_dev.tsv \
        --dense dense.jm

The figures go into sst2_minilm.json. The dense classifier is a linear layer on the mean hidden
vector; it is trained with the encoder on SENTENCES of the training sentences of up to 32 tokens,
and DENSE keeps it between runs. Second moments of the same sentences calibrate. SparseGPT and a
refit then prune the block matrices to a share of zeros; the tables and the head stay dense. One
pass over the sentences retrains with the masks held, either on labels alone, or half on labels and
half on the dense classifier's logits. Accuracy is that of the encoded model on the whole dev set. A
row that is in the file is not measured again.
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

LENGTHS = (12, 16, 20, 24, 28)  # sentences of so many tokens calibrate: no padding is counted
BATCH, WIDTHS, SEED = 32, (20, 32), 0
DENSE_RATE, DENSE_PASSES, RATE = 1e-4, 2, 1e-4
ALPHA, TEMPERATURE = 0.5, 2.0
DENSITIES = {"80 %": 0.2, "50 %": 0.5, "90 %": 0.1}
BLOCKS = "bert/layers/.*/kernel"


def read_sentences(model, path: pathlib.Path) -> tuple[list[list[int]], np.ndarray]:
    """Tokens and labels of a file of `sentence<tab>label` lines."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    model.tokenizer.no_padding()
    model.tokenizer.no_truncation()
    ids = [e.ids for e in model.tokenizer.encode_batch([text for text, _ in rows])]
    return ids, np.array([int(label) for _, label in rows], np.int32)


def batches(ids: list[list[int]], widths, rng=None) -> list[np.ndarray]:
    """Row numbers, BATCH of about one length together; in random order with `rng`."""
    groups = []
    for low, high in zip((0, *widths), widths):
        rows = np.array([i for i, sentence in enumerate(ids) if low < len(sentence) <= high], int)
        if rng is not None:
            rows = rng.permutation(rows)[: len(rows) // BATCH * BATCH]
        groups += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return groups if rng is None else [groups[i] for i in rng.permutation(len(groups))]


def padded(ids: list[list[int]], rows: np.ndarray, widths) -> jax.Array:
    """(BATCH, width) tokens; padding is number 0, which no sentence holds."""
    longest = max(len(ids[i]) for i in rows)
    tokens = np.zeros((BATCH, next(w for w in widths if w >= longest)), np.int32)
    for row, i in zip(tokens, rows):
        row[: len(ids[i])] = ids[i]
    return jnp.asarray(tokens)


def classifier(model):
    """The apply function of params {"bert", "head"} and padded tokens: logits (B, 2)."""

    def apply(params, ids):
        mask = ids != 0
        hidden = model.apply(params["bert"], ids, mask) * mask[..., None]
        mean = hidden.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return mean @ params["head"]["kernel"] + params["head"]["bias"][None]

    return apply


def logits(apply, params, ids, widths) -> np.ndarray:
    run, scores = jax.jit(apply), np.zeros((len(ids), 2), np.float32)
    for rows in batches(ids, widths):
        scores[rows] = run(params, padded(ids, rows, widths))[: len(rows)]
    return scores


def accuracy(apply, params, ids, labels) -> float:
    predicted = logits(apply, params, ids, (32, 80)).argmax(-1)
    return float((predicted == labels).mean())


def train(apply, params, ids, labels, *, passes=1, rate=RATE, masks=None, teacher=None):
    """The params after `passes` passes. `masks` keeps zeros; `teacher` has logits to learn from."""
    rng = np.random.default_rng(SEED)
    steps = [rows for _ in range(passes) for rows in batches(ids, WIDTHS, rng)]
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, len(steps) // 10, len(steps))
    optimizer = optax.adam(schedule)
    if masks is not None:
        optimizer = optax.chain(optimizer, jm.gradual(masks, begin=0, end=1))
    alpha = 0.0 if teacher is None else ALPHA
    teacher = np.zeros((len(ids), 2), np.float32) if teacher is None else teacher

    @jax.jit
    def step(params, state, ids, labels, teacher_logits):
        options = {"alpha": alpha, "temperature": TEMPERATURE}
        loss = lambda p: jm.distillation(apply(p, ids), teacher_logits, labels, **options)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for rows in steps:
        batch = padded(ids, rows, WIDTHS), jnp.asarray(labels[rows]), jnp.asarray(teacher[rows])
        params, state = step(params, state, *batch)
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
    ids, labels = read_sentences(model, args.train)
    short = [i for i, sentence in enumerate(ids) if len(sentence) <= WIDTHS[-1]][: args.sentences]
    ids, labels = [ids[i] for i in short], labels[short]
    dev = read_sentences(model, args.dev)
    if not args.dense.exists():
        head = {"kernel": jnp.zeros((model.config.width, 2)), "bias": jnp.zeros(2)}
        start = {"bert": model.params, "head": head}
        options = {"passes": DENSE_PASSES, "rate": DENSE_RATE}
        jm.save(args.dense, train(apply, start, ids, labels, **options))
    dense = jm.load(args.dense)
    results = {
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
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def add(zeros: str, retraining: str, encode) -> None:
        key = {"zeros": zeros, "retrained": retraining}
        if any(key.items() <= row.items() for row in results["rows"]):
            return
        start = time.perf_counter()
        params = encode()
        seconds = round(time.perf_counter() - start, 1)
        row = {"bytes": jm.nbytes(params), "accuracy": accuracy(apply, params, *dev)}
        results["rows"].append(key | row | {"seconds": seconds})
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(results["rows"][-1], flush=True)

    add("none", "no", lambda: dense)
    groups = [[sentence for sentence in ids if len(sentence) == length][:64] for length in LENGTHS]
    stats = jm.stats(apply, dense, [(jnp.asarray(group, jnp.int32),) for group in groups])
    teacher = logits(apply, dense, ids, WIDTHS)
    for zeros, density in DENSITIES.items():
        masks = jm.choose(dense, {BLOCKS: jm.Bitmask(density)})
        solved = jm.choose(dense, {BLOCKS: jm.Refit(jm.SparseGPT(jm.Bitmask(density)))})
        pruned = jm.encode(dense, solved, stats=stats)
        add(zeros, "no", lambda: pruned)  # noqa: B023
        for retraining, teacher_logits in {"on labels": None, "with the teacher": teacher}.items():

            def encode(teacher_logits=teacher_logits, masks=masks, pruned=pruned):
                options = {"masks": masks, "teacher": teacher_logits}
                return jm.encode(train(apply, jm.decode(pruned), ids, labels, **options), masks)

            add(zeros, retraining, encode)


if __name__ == "__main__":
    main()
