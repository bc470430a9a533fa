"""SmolLM2's block linears at 8 to 2 bits, by each solver: writes quantize_smollm2.json.

    pip install -e ".[demo]"
    python experiments/quality/quantize_smollm2.py --text wikitext2_valid.txt --rows "4 bits.*"

The model is smollm2-135m, rotated. 128 windows of 512 tokens of the first half of TEXT calibrate, 8
windows of 1,024 of the second half measure. `--rows` picks rows by a regex of their names ("4 bits
GPTQ"). A row that is in the file already is not measured again. Seconds are of encoding, compiling
included; the statistics' are apart. The peak is of the process while it encodes, with the dense
model and the statistics in it. "numpy GPTQ" is a plain loop in float64, a peer to compare to. Tuned
rows train the scales of the row before them, 120 steps of 256 tokens of the first half; their
seconds and peak are of that alone. Rows by blocks calibrate each layer, on 64 windows, behind the
encoded layers before it, and may then learn its codes and scales in one pass over them. `--keep`
names a directory where statistics and encodings stay between runs. `--control` measures in another
basis that is off the checkpoint's grid: not rotated, every input channel times exp(U(-.35, .35)),
undone in what writes it. Rows of other than 8 windows, and control rows, are named so. `--all`
encodes embedding and head as well; an embedding is looked up in, and has no inputs to calibrate
with: its ranges are searched.
"""

import argparse
import functools
import hashlib
import json
import os
import pathlib
import re
import tempfile

import jax
import numpy as np
from ways import CALIBRATION, Ways, first_codec

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading
from jaxmem.models.rescaling import channel_links, leaf_at, rescale

TUNED = "GPTQ of a weighted search, 4 turns"  # the row that tuned ones start from
SCORES = ("perplexity", "kl", "kl_by_window", "agreement", "dense_perplexity")
COST = ("seconds", "peak_rss")
LINEARS = r"layers/(attn|mlp)/.*/kernel"
TABLE, HEAD = "embed/embedding", "head/kernel"
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


def remembered(model: models.Model, ids: np.ndarray, count: int):
    """`apply` that reads the dense model's logits of each window from files; made once."""
    windows = ids[: count * 1024].reshape(-1, 1024).astype(np.int32)
    folder = tempfile.TemporaryDirectory()
    dense = jax.jit(model.apply)
    for i, row in enumerate(windows):
        np.save(f"{folder.name}/{i}.npy", dense(model.params, row[None]))

    def read(ids):
        return np.load(f"{folder.name}/{(windows == ids[0]).all(1).argmax()}.npy")

    shape = jax.ShapeDtypeStruct((1, windows.shape[1], model.config.vocab), "float32")
    return lambda _, ids: jax.pure_callback(read, shape, ids), folder


def jittered(model: models.Model) -> models.Model:
    """The same function with each input channel of its linears times exp(U(-.35, .35))."""
    random = np.random.default_rng(0)
    for link in sorted(channel_links(model.config), key=lambda link: link.of_norm):
        layers, k, _ = leaf_at(model.tensors, link.readers[0]).shape
        jitter = random.uniform(-0.35, 0.35, (layers, k // link.repeats))
        model = rescale(model, {link: np.exp(jitter).astype(np.float32)})
    return model


def started(path: pathlib.Path, model: models.Model) -> dict:
    """What the file holds, and what this run is made with."""
    found = {
        "command": "python experiments/quality/quantize_smollm2.py --text wikitext2_valid.txt",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "calibration": CALIBRATION,
        "windows": 8,
        "statistics": {},
        "rows": {},
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        found |= {name: old[name] for name in ("statistics", "rows")}
    return found


def write(path: pathlib.Path, found: dict) -> None:
    """The file appears whole or not at all."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def row_of(model: models.Model, plan: jm.Plan, result: dict, *cost) -> dict:
    """What the table holds of one way; bits are those of the block linears, or of all parameters.

    `cost` is seconds and peak bytes; nothing for what an earlier run kept.
    """
    shapes = jax.eval_shape(lambda p: jm.encode(p, plan), model.params)
    leaves = jax.tree.leaves(shapes, is_leaf=jm.is_encoded)
    if TABLE not in plan:
        leaves = [x for x in leaves if jm.is_encoded(x)]
    return {
        "codec": str(first_codec(plan)),
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


def halves(path: pathlib.Path, model: models.Model) -> list[np.ndarray]:
    """Token ids of the text's first half, which calibrates, and of its second."""
    text = path.read_text(encoding="utf-8")
    parts = text[: len(text) // 2], text[len(text) // 2 :]
    encode = lambda part: model.tokenizer.encode(part, add_special_tokens=False).ids
    return [np.asarray(encode(part)) for part in parts]


def marked(args: argparse.Namespace) -> str:
    """What the name of a row ends with."""
    others = f", {args.windows} windows" if args.windows != 8 else ""
    return others + ", control" * args.control + ", all parameters" * args.all


def blind(codec):
    """What of a method needs no calibration, which a table that is looked up in cannot have."""
    while isinstance(codec, (jm.QERA, jm.GPTQ)):
        codec = codec.codec
    return codec


def main() -> None:
    args = arguments()
    path = pathlib.Path(__file__).with_suffix(".json")
    plain, mark = models.load("smollm2-135m"), marked(args)
    found = started(path, models.rotate(plain))
    model = jittered(plain) if args.control else models.rotate(plain)
    calibration, ids = halves(args.text, model)
    known = {}
    timed = None if mark else {row["codec"] for row in found["rows"].values()}
    ways = Ways(model, calibration, args.keep, " control" * args.control + " all" * args.all, timed)

    def add(name: str, codec, make) -> None:
        old = found["rows"].get(name + mark, {})
        if "kl_by_window" in old or not re.fullmatch(args.rows, name):
            return
        codecs = {LINEARS: codec} | ({HEAD: codec, TABLE: blind(codec)} if args.all else {})
        plan = jm.choose(model.params, codecs)
        tree, *cost = make(plan)
        if ways.statistics_cost and not mark:
            found["statistics"] = ways.statistics_cost
        if not known:
            known["apply"], known["folder"] = remembered(model, ids, args.windows)
        how = {"reference": (known["apply"], None), "windows": args.windows}
        result = json.loads(jm.evaluate(model.apply, jm.decode(tree), ids, **how).to_json())
        kept = {key: old[key] for key in COST if key in old}
        row = row_of(model, plan, result, *cost) | kept
        if path.exists():  # with the rows that another process added meanwhile
            found["rows"] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found["rows"][name + mark] = row
        write(path, found)
        print(name + mark, {key: row[key] for key in ("kl", "perplexity")}, flush=True)

    for bits, group in FORMATS.items():
        codec = jm.Int(bits, group=group, symmetric=False)
        for name, method in METHODS.items():
            add(f"{bits} bits {name}", method(codec), ways.encoded)
        trained = {
            "scales tuned": ways.tuned,
            "by blocks": functools.partial(ways.by_blocks, passes=0),
            "by blocks, codes learned": functools.partial(ways.by_blocks, passes=1),
            "by blocks, codes learned, scales tuned": ways.learned_then_tuned,
        }
        for name, make in trained.items():
            add(f"{bits} bits {TUNED}, {name}", METHODS[TUNED](codec), make)
        add(f"{bits} bits GPTQ, by blocks", jm.GPTQ(codec), trained["by blocks"])
        add(f"{bits} bits numpy GPTQ", codec, ways.by_numpy)


if __name__ == "__main__":
    main()
