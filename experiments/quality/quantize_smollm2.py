"""SmolLM2's block linears at 8 to 2 bits, by each solver: writes quantize_smollm2.json.

    pip install -e ".[demo]"
    python experiments/quality/quantize_smollm2.py --text wikitext2_valid.txt --rows "4 bits.*"

The model is smollm2-135m, rotated. 128 windows of 512 tokens of the first half of TEXT calibrate, 8
windows of 1,024 tokens of the second half measure. `--rows` picks rows by a regex of their names
("4 bits GPTQ"). A row that is in the file already is not measured again.

A row's seconds are those of encoding, compiling included; those of the statistics are separate. Its
peak is that of the process while it encodes, with the dense model and the statistics in memory.
Rows named "numpy GPTQ" are a plain loop in float64, for comparison. Tuned rows train the scales of
the row before them, by 120 steps of 256 tokens of the first half; their seconds and peak count the
training alone. Rows by blocks calibrate each layer with 64 windows that the encoded layers before
it have computed; some then learn the codes and scales of the layer in one pass over them.

`--keep` names a directory where statistics and encodings stay between runs. `--control` measures in
another basis that is off the checkpoint's grid: the model is not rotated, but every input channel
is multiplied by exp(U(-.35, .35)), and what writes the channel is divided by it. Control rows, and
rows of another number of windows than 8, are named so. `--all` encodes embedding and head as well;
the embedding is only looked up, so that it has no inputs to calibrate with, and its ranges are
searched.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import re

import jax
import numpy as np
from quantization_recipes import (
    CALIBRATION_SHAPE,
    EMBEDDING,
    Recipes,
    block_codec,
    stored_logits,
    text_halves,
    write_results,
)

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading
from jaxmem.models.rescaling import channel_links, leaf_at, rescale

TUNED = "GPTQ of a weighted search, 4 turns"  # tuned rows start from this row
SCORES = ("perplexity", "kl", "kl_by_window", "agreement", "dense_perplexity")
COST = ("seconds", "peak_rss")
LINEARS = r"layers/(attn|mlp)/.*/kernel"
HEAD = "head/kernel"
FORMATS = {8: None, 6: 64, 5: 64, 4: 64, 3: 64, 2: 32}  # bits: group
METHODS = {
    "RTN": lambda codec: codec,
    "Search": jm.Search,
    "HQQ": jm.HQQ,
    "GPTQ": jm.GPTQ,
    "GPTQ of a weighted search": lambda codec: jm.GPTQ(jm.Search(codec)),
    TUNED: lambda codec: jm.GPTQ(jm.Search(codec), turns=4),
    f"{TUNED}, rank 8": lambda codec: jm.QERA(jm.GPTQ(jm.Search(codec), turns=4), 8),
}


def off_grid(model: models.Model) -> models.Model:
    """The same function with each input channel of its linears times exp(U(-.35, .35))."""
    random = np.random.default_rng(0)
    for link in sorted(channel_links(model.config), key=lambda link: link.of_norm):
        layers, k, _ = leaf_at(model.tensors, link.readers[0]).shape
        jitter = random.uniform(-0.35, 0.35, (layers, k // link.repeats))
        model = rescale(model, {link: np.exp(jitter).astype(np.float32)})
    return model


def earlier_results(path: pathlib.Path, model: models.Model) -> dict:
    """The file's rows and statistics, with the facts of this run."""
    results = {
        "command": "python experiments/quality/quantize_smollm2.py --text wikitext2_valid.txt",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "calibration": CALIBRATION_SHAPE,
        "windows": 8,
        "statistics": {},
        "rows": {},
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        results |= {name: old[name] for name in ("statistics", "rows")}
    return results


def row_of(model: models.Model, plan: jm.Plan, result: dict, *cost) -> dict:
    """One row of the table; bits are those of the block linears, or of all parameters.

    `cost` is seconds and peak bytes; it is empty for params that an earlier run kept.
    """
    shapes = jax.eval_shape(lambda p: jm.encode(p, plan), model.params)
    leaves = jax.tree.leaves(shapes, is_leaf=jm.is_encoded)
    if EMBEDDING not in plan:
        leaves = [x for x in leaves if jm.is_encoded(x)]
    return {
        "codec": str(block_codec(plan)),
        "bits_per_weight": 8 * jm.nbytes(leaves) / sum(x.size for x in leaves),
        **{key: result[key] for key in SCORES},
        **(dict(zip(COST, (round(cost[0], 1), cost[1]))) if cost else {}),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rows", default=".*")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--all", action="store_true")
    return parser.parse_args()


def name_suffix(args: argparse.Namespace) -> str:
    """The end of a row's name, which says how it differs from the standard rows."""
    windows = f", {args.windows} windows" if args.windows != 8 else ""
    return windows + ", control" * args.control + ", all parameters" * args.all


def without_calibration(codec):
    """The part of a method that needs no statistics, for the embedding, which has no inputs."""
    while isinstance(codec, (jm.QERA, jm.GPTQ)):
        codec = codec.codec
    return codec


def main() -> None:
    args = arguments()
    path = pathlib.Path(__file__).with_suffix(".json")
    plain, suffix = models.load("smollm2-135m"), name_suffix(args)
    results = earlier_results(path, models.rotate(plain))
    model = off_grid(plain) if args.control else models.rotate(plain)
    calibration, ids = text_halves(args.text, model)
    reference = {}
    timed_codecs = None if suffix else {row["codec"] for row in results["rows"].values()}
    file_suffix = " control" * args.control + " all" * args.all
    recipes = Recipes(model, calibration, args.keep, file_suffix, timed_codecs)

    def add(name: str, codec, encode) -> None:
        old = results["rows"].get(name + suffix, {})
        if "kl_by_window" in old or not re.fullmatch(args.rows, name):
            return
        codecs = {LINEARS: codec}
        if args.all:
            codecs |= {HEAD: codec, EMBEDDING: without_calibration(codec)}
        plan = jm.choose(model.params, codecs)
        tree, *cost = encode(plan)
        if recipes.statistics_cost and not suffix:
            results["statistics"] = recipes.statistics_cost
        if not reference:
            reference["apply"], reference["folder"] = stored_logits(model, ids, args.windows)
        options = {"reference": (reference["apply"], None), "windows": args.windows}
        evaluation = json.loads(jm.evaluate(model.apply, jm.decode(tree), ids, **options).to_json())
        old_cost = {key: old[key] for key in COST if key in old}
        row = row_of(model, plan, evaluation, *cost) | old_cost
        if path.exists():  # with the rows that another process added meanwhile
            results["rows"] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        results["rows"][name + suffix] = row
        write_results(path, results)
        print(name + suffix, {key: row[key] for key in ("kl", "perplexity")}, flush=True)

    for bits, group in FORMATS.items():
        codec = jm.Int(bits, group=group, symmetric=False)
        for name, method in METHODS.items():
            add(f"{bits} bits {name}", method(codec), recipes.encoded)
        trained = {
            "scales tuned": recipes.tuned,
            "by blocks": functools.partial(recipes.by_blocks, passes=0),
            "by blocks, codes learned": functools.partial(recipes.by_blocks, passes=1),
            "by blocks, codes learned, scales tuned": recipes.learned_then_tuned,
        }
        for name, encode in trained.items():
            add(f"{bits} bits {TUNED}, {name}", METHODS[TUNED](codec), encode)
        add(f"{bits} bits GPTQ, by blocks", jm.GPTQ(codec), trained["by blocks"])
        add(f"{bits} bits numpy GPTQ", codec, recipes.by_numpy)


if __name__ == "__main__":
    main()
