"""BERT (minilm-l6) with 40 % of its weights, 8 bits, half of them zero, or all: sparse_minilm.json.

    pip install -e ".[demo]"
    python experiments/sparse_minilm.py --train stsb_en_train.csv --test stsb_en_dev.csv

Every matrix and table is encoded. Pruned block matrices are SparseGPT's on moments of the training
sentences, refitted; tables are pruned by magnitude. Retraining is one pass over the training pairs,
half on their labels and half on the dense model's vectors, with the masks held by `jm.gradual`;
what is then encoded is its result. A row that is in the file is not measured again.
"""

import argparse
import csv
import functools
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.evaluation import evaluate_embeddings, sentence_embedder
from jaxmem.models import bert

LENGTHS = (8, 12, 16, 20, 24)  # sentences of so many tokens calibrate: no padding is counted
BLOCKS, TABLES = "layers/.*/kernel", ".*/embedding"
BATCH, WIDTH, RATE = 32, 48, 3e-5
FORMS = {
    "8 bits": (None, jm.Int(8)),
    "keep 40 %": (0.4, None),
    "half zero": (0.5, None),
    "keep 40 %, 8 bits": (0.4, jm.Int(8)),
    "half zero, 8 bits": (0.5, jm.Int(8)),
    "half zero, 4 bits": (0.5, jm.Int(4, group=32)),
    "2:4, 8 bits": ("2:4", jm.Int(8)),
}


def read(path: pathlib.Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    return [(a, b) for a, b, _ in rows], np.array([float(s) for *_, s in rows], np.float32)


def pattern(density):
    return jm.NM(2, 4) if density == "2:4" else jm.Bitmask(density)


def plan(model, density, codec, solve: bool) -> jm.Plan:
    """What encodes the blocks (with a solver, or what is left after training) and the tables."""
    then = () if codec is None else (codec,)
    if density is None:
        rules = {BLOCKS: codec, TABLES: codec}
    else:
        form = pattern(density)
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
        rows = np.array([i for i in ids if len(i) == length][:256], np.int32)
        batches.append((jnp.asarray(rows), jnp.ones(rows.shape, bool)))
    return jm.stats(model.apply, model.params, batches)


def retrained(model, start: dict, masks: dict | None, pairs, scores) -> dict:
    """The params after one pass over the pairs; with `masks`, at the sparsity they say."""
    model.tokenizer.enable_truncation(WIDTH)
    model.tokenizer.enable_padding(length=WIDTH)
    found = model.tokenizer.encode_batch([side for pair in pairs for side in pair])
    ids = np.array([e.ids for e in found], np.int32).reshape(-1, 2, WIDTH)
    seen = np.array([e.attention_mask for e in found], bool).reshape(-1, 2, WIDTH)
    steps = len(pairs) // BATCH
    tx = optax.adam(optax.linear_schedule(RATE, 0.0, steps))
    tx = tx if masks is None else optax.chain(tx, jm.gradual(masks, begin=0, end=1))

    def vectors(params, ids, seen):
        return bert.embed(model.apply(params, ids, seen), seen)

    def loss(params, ids, seen, wanted, score):
        own = vectors(params, ids, seen)
        likeness = (own[::2] * own[1::2]).sum(-1)
        return jnp.square(likeness - score / 5).mean() + (1 - (own * wanted).sum(-1)).mean()

    @jax.jit
    def step(params, state, ids, seen, score):
        slope = jax.grad(loss)(params, ids, seen, vectors(model.params, ids, seen), score)
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    order = np.random.default_rng(0).permutation(len(pairs))[: steps * BATCH].reshape(steps, BATCH)
    for rows in order:
        flat = lambda a: jnp.asarray(a[rows].reshape(-1, WIDTH))  # noqa: B023
        params, state = step(params, state, flat(ids), flat(seen), jnp.asarray(scores[rows]))
    return params


def times(model, params: dict) -> float:
    """Seconds of one sentence of 16 tokens, against the dense model's in the same process."""
    ids = jnp.ones((1, 16), jnp.int32)
    runs = [jax.jit(functools.partial(model.apply, p)) for p in (model.params, params)]
    runs = [run.lower(ids).compile() for run in runs]
    found = []
    for _ in range(15):
        seconds = []
        for run in runs:
            start = time.perf_counter()
            jax.block_until_ready(run(ids))
            seconds.append(time.perf_counter() - start)
        found.append(seconds[1] / seconds[0])
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("minilm-l6")
    (pairs, scores), test = read(args.train), read(args.test)
    stats = moments(model, [side for pair in pairs for side in pair])
    embed = sentence_embedder(model)
    found = {
        "command": " ".join(["python", "experiments/sparse_minilm.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
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
        result = evaluate_embeddings(embed, encoded, *test, reference=(embed, model.params))
        result = json.loads(result.to_json())
        size = jm.nbytes(encoded)
        row = {"bytes": size, "of_dense": size / found["dense_bytes"]}
        row |= {what: result[what] for what in ("spearman", "cosine")}
        found["rows"].append(key | row | {"seconds_over_dense": times(model, encoded)})
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(name, retrain, size, result["spearman"]["mean"], flush=True)

    add("dense", False, lambda: model.params)
    add("dense", True, lambda: retrained(model, model.params, None, pairs, scores))
    for retrain in (False, True):
        for name, (density, codec) in FORMS.items():

            def make(density=density, codec=codec, retrain=retrain):
                if not retrain:
                    return jm.encode(model.params, plan(model, density, codec, True), stats=stats)
                start, masks = model.params, None
                if density is not None:
                    solved = plan(model, density, None, True)
                    start = jm.decode(jm.encode(model.params, solved, stats=stats))
                    masks = plan(model, density, None, False)
                params = retrained(model, start, masks, pairs, scores)
                return jm.encode(params, plan(model, density, codec, False))

            add(name, retrain, make)


if __name__ == "__main__":
    main()
