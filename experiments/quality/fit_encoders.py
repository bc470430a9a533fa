"""Sentence encoders (MiniLM-L3 and L6, mpnet-base; float32) in 8 and 4.5 bits a weight by jm.fit.

    pip install -e ".[demo]"
    python fit_encoders.py --test stsb_en_dev.csv --models minilm-l6
    python fit_encoders.py --test stsb_en_dev.csv --models mpnet-base

The figures go into fit_encoders.json: Spearman's correlation with the scores of STS-B, and the mean
cosine to the dense embeddings. All weights count, the tables of words too. `fit` gets no text. Of
`--pairs` so many pairs are drawn with SEED. A row that is in the file is not measured again.
"""

import argparse
import csv
import json
import math
import pathlib
import time

import jax
import numpy as np

import jaxmem as jm
from jaxmem.evaluation.embeddings import evaluate_embeddings, sentence_embedder

BITS, SEED = (32, 4.5, 8), 0


def read_pairs(path: pathlib.Path, count: int) -> tuple[list[tuple[str, str]], list[float]]:
    """`count` pairs of sentences, or all if they are fewer, and their scores."""
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    if count < len(rows):
        rows = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))[:count]]
    return [(a, b) for a, b, _ in rows], [float(score) for *_, score in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", default=["minilm-l3", "minilm-l6", "mpnet-base"])
    parser.add_argument("--pairs", type=int, default=1500)
    args = parser.parse_args()
    pairs, scores = read_pairs(args.test, args.pairs)
    sentences = [sentence for pair in pairs for sentence in pair]
    path = pathlib.Path(__file__).with_suffix(".json")
    figures = {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    figures |= {"test": args.test.name, "models": {}, "rows": {}}
    if path.exists():
        figures |= json.loads(path.read_text(encoding="utf-8"))
    for name in args.models:
        model = jm.models.load(name)
        figures["models"][name] = model.source
        embed = sentence_embedder(model)
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
        dense = embed(model.params, sentences)
        for bits in BITS:
            row = f"{name}, {bits} bits" if bits < 32 else f"{name}, dense"
            if row in figures["rows"]:
                continue
            start = time.perf_counter()
            params = model.params if bits == 32 else jm.fit(model, int(count * bits / 8)).params
            seconds = time.perf_counter() - start
            vectors = dense if bits == 32 else embed(jm.decode(params), sentences)
            given = lambda vectors, _: vectors
            found = evaluate_embeddings(given, vectors, pairs, scores, reference=(given, dense))
            estimates = json.loads(found.to_json())
            figures["rows"][row] = {
                "bytes": jm.nbytes(params),
                "bits": round(8 * jm.nbytes(params) / count, 3),
                "pairs": len(pairs),
                "spearman": estimates["spearman"],
                "cosine": estimates["cosine"],
                "fit_seconds": round(seconds, 1),
            }
            print(row, figures["rows"][row], flush=True)
            path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
