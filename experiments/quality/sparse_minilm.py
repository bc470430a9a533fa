"""BERT (minilm-l6) with 40 % of its weights, 8 bits, half of them zero, or all: sparse_minilm.json.

    pip install -e ".[demo]"
    python experiments/quality/sparse_minilm.py --train stsb_en_train.csv --test stsb_en_dev.csv

Every matrix and table is encoded. Pruned block matrices are SparseGPT's on moments of the training
sentences, refitted; tables are pruned by magnitude. Retraining is one pass over PAIRS training
pairs of up to 32 tokens a sentence, half on their labels and half on the dense model's vectors,
with the masks held by `jm.gradual`; what is then encoded is its result, and what is not pruned is
retrained and then rounded. Seconds are of one sentence of 16 tokens; the ratio is of runs that take
turns. A row that is in the file is not measured again.
"""

import argparse
import csv
import functools
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
from jaxmem.architectures import bert
from jaxmem.evaluation.embeddings import evaluate_embeddings, sentence_embedder

LENGTHS = (8, 12, 16, 20, 24)  # sentences of so many tokens calibrate: no padding is counted
BLOCKS, TABLES = "layers/.*/kernel", ".*/embedding"
BATCH, WIDTHS, RATE, SEED = 16, (16, 32), 5e-5, 0
FORMS = {
    "8 bits": (None, jm.Int(8)),
    "keep 40 %": (0.4, None),
    "half zero": (0.5, None),
    "keep 40 %, 8 bits": (0.4, jm.Int(8)),
    "half zero, 8 bits": (0.5, jm.Int(8)),
}


def read(path: pathlib.Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    return [(a, b) for a, b, _ in rows], np.array([float(s) for *_, s in rows], np.float32)


def plan(model, density, codec, solve: bool) -> jm.Plan:
    """What encodes the blocks (with a solver, or what is left after training) and the tables."""
    then = () if codec is None else (codec,)
    if density is None:
        rules = {BLOCKS: codec, TABLES: codec}
    else:
        form = jm.Bitmask(density)
        wrapped = jm.Refit(jm.SparseGPT(form)) if solve else form
        if solve and then:
            wrapped = jm.SparseGPT(jm.Chain((form, *then)))
        elif then:
            wrapped = jm.Chain((form, *then))
        rules = {BLOCKS: wrapped, TABLES: jm.Chain((form, *then)) if then else form}
    return jm.choose(model.params, rules)


def moments(model, sentences: list[str]) -> dict:
    model.tokenizer.no_truncation()
    model.tokenizer.no_padding()
    ids = [encoding.ids for encoding in model.tokenizer.encode_batch(sentences)]
    batches = []
    for length in LENGTHS:
        rows = np.array([i for i in ids if len(i) == length][:96], np.int32)
        batches.append((jnp.asarray(rows), jnp.ones(rows.shape, bool)))
    return jm.stats(model.apply, model.params, batches)


def retrained(model, start: dict, masks: dict | None, pairs, scores) -> dict:
    """The params after one pass over the pairs; with `masks`, at the sparsity they say."""
    wanted = sentence_embedder(model)(model.params, [side for pair in pairs for side in pair])
    wanted = jnp.asarray(wanted.reshape(len(pairs), 2, -1))
    model.tokenizer.no_padding()
    model.tokenizer.no_truncation()
    ids = [[e.ids for e in model.tokenizer.encode_batch(list(pair))] for pair in pairs]
    longest = np.array([max(map(len, two)) for two in ids])
    widths = np.array([next((w for w in WIDTHS if w >= n), 0) for n in longest])
    draw = np.random.default_rng(SEED)
    batches = []
    for width in WIDTHS:
        rows = draw.permutation(np.flatnonzero(widths == width))
        batches += list(rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH))
    tx = optax.adam(optax.linear_schedule(RATE, 0.0, len(batches)))
    tx = tx if masks is None else optax.chain(tx, jm.gradual(masks, begin=0, end=1))

    def loss(params, ids, seen, wanted, score):
        own = bert.embed(model.apply(params, ids, seen), seen)
        likeness = (own[::2] * own[1::2]).sum(-1)
        return jnp.square(likeness - score / 5).mean() + (1 - (own * wanted).sum(-1)).mean()

    @jax.jit
    def step(params, state, *batch):
        updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for turn in draw.permutation(len(batches)):
        rows = batches[turn]
        padded = np.zeros((2 * BATCH, widths[rows[0]]), np.int32)
        for own, row in zip(padded, (one for i in rows for one in ids[i])):
            own[: len(row)] = row
        vectors = wanted[rows].reshape(2 * BATCH, -1)
        padded = jnp.asarray(padded)  # no token of a sentence is number 0, which is padding's
        params, state = step(params, state, padded, padded != 0, vectors, jnp.asarray(scores[rows]))
    return params


def times(model, params: dict) -> dict:
    """Seconds of one sentence of 16 tokens, and against the dense model's in the same process."""
    ids = jnp.ones((1, 16), jnp.int32)
    trees = model.params, params
    runs = [jax.jit(model.apply).lower(tree, ids).compile() for tree in trees]
    found = []
    for _ in range(31):
        seconds = []
        for run, tree in zip(runs, trees):
            start = time.perf_counter()
            jax.block_until_ready(run(tree, ids))
            seconds.append(time.perf_counter() - start)
        found.append(seconds)
    dense, own = np.array(found).T
    return {"seconds": float(np.median(own)), "seconds_over_dense": float(np.median(own / dense))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=2000)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("minilm-l6")
    (pairs, scores), test = read(args.train), read(args.test)
    stats = moments(model, [side for pair in pairs for side in pair])
    embed = sentence_embedder(model)
    dense = embed(model.params, [side for pair in test[0] for side in pair])
    found = {
        "command": " ".join(["python", "experiments/quality/sparse_minilm.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "pairs": args.pairs,
        "cores": len(os.sched_getaffinity(0)),
        "seed": SEED,
        "model": model.source,
        "dense_bytes": jm.nbytes(model.params),
        "rows": [],
    }
    if path.exists():
        found |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def add(name: str, retrain: bool, make) -> None:
        key = {"form": name, "retrained": retrain}
        if any(key.items() <= row.items() for row in found["rows"]):
            return
        encoded = make()
        result = evaluate_embeddings(embed, encoded, *test, reference=(lambda *_: dense, None))
        result = json.loads(result.to_json())
        size = jm.nbytes(encoded)
        row = {"bytes": size, "of_dense": size / found["dense_bytes"]}
        row |= {what: result[what] for what in ("spearman", "cosine")}
        found["rows"].append(key | row | times(model, encoded))
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(name, retrain, size, result["spearman"]["mean"], flush=True)

    @functools.cache
    def trained(density) -> dict:
        start, masks = model.params, None
        if density is not None:
            solved = plan(model, density, None, True)
            start = jm.decode(jm.encode(model.params, solved, stats=stats))
            masks = plan(model, density, None, False)
        return retrained(model, start, masks, pairs[: args.pairs], scores)

    add("dense", False, lambda: model.params)
    for name, (density, codec) in FORMS.items():
        own = lambda density=density, codec=codec: plan(model, density, codec, True)
        add(name, False, lambda own=own: jm.encode(model.params, own(), stats=stats))
    add("dense", True, lambda: trained(None))
    for name, (density, codec) in FORMS.items():
        own = lambda d=density, c=codec: jm.encode(trained(d), plan(model, d, c, False))
        add(name, True, own)


if __name__ == "__main__":
    main()
