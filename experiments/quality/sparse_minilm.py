"""BERT (minilm-l6) pruned to 50 or 40 % of its weights, in 8 bits, or both: sparse_minilm.json.

    pip install -e ".[demo]"
    python experiments/quality/sparse_minilm.py --train stsb_en_train.csv --test stsb_en_dev.csv

Every matrix and table is encoded. SparseGPT prunes the block matrices with moments of the training
sentences, and a refit follows; tables are pruned by magnitude. Retraining is one pass over PAIRS
training pairs of up to 32 tokens a sentence, half on their labels and half on the dense model's
vectors, with the masks held by `jm.gradual`; its result is then encoded. A row that is not pruned
is retrained and then rounded. Seconds are those of one sentence of 16 tokens; the ratio is of runs
that take turns. A row that is in the file is not measured again.
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
FORMATS = {
    "8 bits": (None, jm.Int(8)),
    "keep 40 %": (0.4, None),
    "half zero": (0.5, None),
    "keep 40 %, 8 bits": (0.4, jm.Int(8)),
    "half zero, 8 bits": (0.5, jm.Int(8)),
}


def read_pairs(path: pathlib.Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    return [(a, b) for a, b, _ in rows], np.array([float(s) for *_, s in rows], np.float32)


def plan_of(model, density, codec, with_solver: bool) -> jm.Plan:
    """The plan of blocks and tables. `with_solver` prunes; else the zeros of training are kept."""
    rounding = () if codec is None else (codec,)
    if density is None:
        rules = {BLOCKS: codec, TABLES: codec}
    else:
        pruned = jm.Bitmask(density)
        block_codec = jm.Refit(jm.SparseGPT(pruned)) if with_solver else pruned
        if with_solver and rounding:
            block_codec = jm.SparseGPT(jm.Chain((pruned, *rounding)))
        elif rounding:
            block_codec = jm.Chain((pruned, *rounding))
        rules = {BLOCKS: block_codec, TABLES: jm.Chain((pruned, *rounding)) if rounding else pruned}
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


def retrain(model, start: dict, masks: dict | None, pairs, scores) -> dict:
    """The params after one pass over the pairs; with `masks`, those weights stay zero."""
    sentences = [sentence for pair in pairs for sentence in pair]
    dense_vectors = sentence_embedder(model)(model.params, sentences)
    dense_vectors = jnp.asarray(dense_vectors.reshape(len(pairs), 2, -1))
    model.tokenizer.no_padding()
    model.tokenizer.no_truncation()
    ids = [[e.ids for e in model.tokenizer.encode_batch(list(pair))] for pair in pairs]
    longest = np.array([max(map(len, pair_ids)) for pair_ids in ids])
    widths = np.array([next((w for w in WIDTHS if w >= n), 0) for n in longest])
    rng = np.random.default_rng(SEED)
    batches = []
    for width in WIDTHS:
        rows = rng.permutation(np.flatnonzero(widths == width))
        batches += list(rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH))
    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, len(batches)))
    if masks is not None:
        optimizer = optax.chain(optimizer, jm.gradual(masks, begin=0, end=1))

    def loss(params, ids, mask, targets, batch_scores):
        vectors = bert.embed(model.apply(params, ids, mask), mask)
        cosine = (vectors[::2] * vectors[1::2]).sum(-1)
        distance = (1 - (vectors * targets).sum(-1)).mean()
        return jnp.square(cosine - batch_scores / 5).mean() + distance

    @jax.jit
    def step(params, state, *batch):
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for batch_index in rng.permutation(len(batches)):
        rows = batches[batch_index]
        padded = np.zeros((2 * BATCH, widths[rows[0]]), np.int32)
        for token_row, row in zip(padded, (sentence for i in rows for sentence in ids[i])):
            token_row[: len(row)] = row
        targets = dense_vectors[rows].reshape(2 * BATCH, -1)
        padded = jnp.asarray(padded)  # number 0 is padding: no sentence has it
        params, state = step(params, state, padded, padded != 0, targets, jnp.asarray(scores[rows]))
    return params


def sentence_time(model, params: dict) -> dict:
    """Seconds of one sentence of 16 tokens, and their ratio to the dense model's, run in turns."""
    ids = jnp.ones((1, 16), jnp.int32)
    trees = model.params, params
    runs = [jax.jit(model.apply).lower(tree, ids).compile() for tree in trees]
    seconds_of_rounds = []
    for _ in range(31):
        seconds = []
        for run, tree in zip(runs, trees):
            start = time.perf_counter()
            jax.block_until_ready(run(tree, ids))
            seconds.append(time.perf_counter() - start)
        seconds_of_rounds.append(seconds)
    dense_seconds, encoded_seconds = np.array(seconds_of_rounds).T
    ratio = float(np.median(encoded_seconds / dense_seconds))
    return {"seconds": float(np.median(encoded_seconds)), "seconds_over_dense": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=2000)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("minilm-l6")
    (pairs, scores), test = read_pairs(args.train), read_pairs(args.test)
    stats = moments(model, [sentence for pair in pairs for sentence in pair])
    embed = sentence_embedder(model)
    dense = embed(model.params, [sentence for pair in test[0] for sentence in pair])
    results = {
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
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def add(name: str, retrained: bool, encode) -> None:
        key = {"form": name, "retrained": retrained}
        if any(key.items() <= row.items() for row in results["rows"]):
            return
        encoded = encode()
        measures = evaluate_embeddings(embed, encoded, *test, reference=(lambda *_: dense, None))
        measures = json.loads(measures.to_json())
        size = jm.nbytes(encoded)
        row = {"bytes": size, "of_dense": size / results["dense_bytes"]}
        row |= {metric: measures[metric] for metric in ("spearman", "cosine")}
        results["rows"].append(key | row | sentence_time(model, encoded))
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(name, retrained, size, measures["spearman"]["mean"], flush=True)

    @functools.cache
    def trained(density) -> dict:
        start, masks = model.params, None
        if density is not None:
            solved = plan_of(model, density, None, True)
            start = jm.decode(jm.encode(model.params, solved, stats=stats))
            masks = plan_of(model, density, None, False)
        return retrain(model, start, masks, pairs[: args.pairs], scores)

    add("dense", False, lambda: model.params)
    for name, (density, codec) in FORMATS.items():
        plan = lambda density=density, codec=codec: plan_of(model, density, codec, True)
        add(name, False, lambda plan=plan: jm.encode(model.params, plan(), stats=stats))
    add("dense", True, lambda: trained(None))
    for name, (density, codec) in FORMATS.items():
        encode = lambda d=density, c=codec: jm.encode(trained(d), plan_of(model, d, c, False))
        add(name, True, encode)


if __name__ == "__main__":
    main()
