"""BERT (minilm-l6, true float32) in 8, 4 and 3 bits, weights and activations: quantize_minilm.json.

    pip install -e ".[demo]"
    python experiments/quality/quantize_minilm.py --train stsb_en_train.csv --test stsb_en_dev.csv

Measured on TEST are Spearman's correlation with STS-B's scores, and the mean cosine to the dense
embeddings. The matrices of the blocks are encoded; some rows also encode the table of words, in 8
bits. Calibrated rows use moments of the sentences of TRAIN. A row that is in the file is not
measured again.
"""

import argparse
import csv
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.evaluation.embeddings import evaluate_embeddings, sentence_embedder

LENGTHS = (8, 12, 16, 20, 24)  # sentences of so many tokens calibrate: no padding is counted
COMMAND = "python experiments/quality/quantize_minilm.py"
BLOCKS, TABLE = "layers/.*/kernel", "embed/embedding"
searched = lambda codec: jm.GPTQ(jm.Search(codec))
FORMATS = {
    "8 bits": jm.Int(8),
    "W8A8": jm.Dynamic(jm.Int(8)),
    "W8A8, smoothed": jm.Smooth(jm.Dynamic(jm.Int(8))),
    "W8A8, smoothed, strength .6": jm.Smooth(jm.Dynamic(jm.Int(8)), 0.6),
    "W8A8, static, minmax": jm.Dynamic(jm.Int(8)),
    "W8A8, static, percentile": jm.Dynamic(jm.Int(8)),
    "W8A8, static, mse": jm.Dynamic(jm.Int(8)),
    "fp8 weights and activations": jm.Dynamic(jm.Float("e4m3"), "e4m3"),
    "W4A8 g32": jm.Dynamic(jm.Int(4, group=32)),
    "4 bits g32": jm.Int(4, group=32),
    "4 bits g32 searched": jm.Search(jm.Int(4, group=32, symmetric=False)),
    "4 bits g32 HQQ": jm.HQQ(jm.Int(4, group=32, symmetric=False)),
    "4 bits g32 GPTQ": searched(jm.Int(4, group=32, symmetric=False)),
    "3 bits g64": jm.Int(3, group=64),
    "3 bits g32 searched": jm.Search(jm.Int(3, group=32, symmetric=False)),
    "3 bits g32 HQQ": jm.HQQ(jm.Int(3, group=32, symmetric=False)),
    "3 bits g64 GPTQ": searched(jm.Int(3, group=64, symmetric=False)),
    "3 bits g32 GPTQ": searched(jm.Int(3, group=32, symmetric=False)),
    "3 bits g32 GPTQ, QERA rank 16": jm.QERA(searched(jm.Int(3, group=32, symmetric=False)), 16),
}
WITH_TABLE = ("8 bits", "W8A8, smoothed", "4 bits g32 GPTQ", "3 bits g32 GPTQ")


def read_pairs(path: pathlib.Path) -> tuple[list[tuple[str, str]], list[float]]:
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    return [(a, b) for a, b, _ in rows], [float(score) for *_, score in rows]


def batches(model, sentences: list[str]) -> list[tuple]:
    model.tokenizer.no_truncation()
    model.tokenizer.no_padding()
    ids = [encoding.ids for encoding in model.tokenizer.encode_batch(sentences)]
    of_length = lambda length: np.array([i for i in ids if len(i) == length][:256], np.int32)
    return [(jnp.asarray(of_length(n)), jnp.ones(of_length(n).shape, bool)) for n in LENGTHS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*", help="a regex of the names of rows to measure")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("minilm-l6")
    test = read_pairs(args.test)
    train_pairs, _ = read_pairs(args.train)
    calibration = batches(model, [sentence for pair in train_pairs for sentence in pair])
    stats = jm.stats(model.apply, model.params, calibration)
    uses = jm.uses(model.apply, model.params, *calibration[0])
    embed = sentence_embedder(model)
    results = {
        "command": f"{COMMAND} --train {args.train.name} --test {args.test.name}",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "seed": None,
        "rows": {},
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    dense_vectors = embed(model.params, [sentence for pair in test[0] for sentence in pair])

    def add(name: str, codec, table) -> None:
        if name in results["rows"] or not re.fullmatch(args.rows, name):
            return
        rules = {BLOCKS: codec} | ({TABLE: table} if table else {})
        start = time.perf_counter()
        tree = model.params
        if codec is not None:
            tree = jm.encode(tree, jm.choose(tree, rules), uses, stats)
        if "static" in name:
            tree = jm.static(tree, model.apply, calibration, method=name.rsplit(maxsplit=1)[-1])
        jax.block_until_ready(tree)
        seconds = time.perf_counter() - start
        leaves = jax.tree.leaves(tree, is_leaf=jm.is_encoded)
        encoded = [x for x in leaves if jm.is_encoded(x)]
        params = tree if "A8" in name or "activations" in name else jm.decode(tree)
        reference = (lambda _, __: dense_vectors, None)
        scores = json.loads(
            evaluate_embeddings(embed, params, *test, reference=reference).to_json()
        )
        results["rows"][name] = {
            "codec": str(codec),
            "bytes": jm.nbytes(tree),
            "bits_per_weight": 8 * jm.nbytes(encoded) / max(1, sum(x.size for x in encoded)),
            **{metric: scores[metric] for metric in ("spearman", "cosine")},
            "seconds": round(seconds, 1),
        }
        dense_spearman = results["rows"]["dense"]["spearman"]["mean"]
        lost_spearman = dense_spearman - scores["spearman"]["mean"]
        results["rows"][name]["spearman_less_than_dense"] = lost_spearman
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(name, lost_spearman, scores["cosine"]["mean"], flush=True)

    add("dense", None, None)
    for name, codec in FORMATS.items():
        add(name, codec, None)
    for name in WITH_TABLE:
        add(f"{name}, and the table in 8 bits", FORMATS[name], jm.Int(8))


if __name__ == "__main__":
    main()
