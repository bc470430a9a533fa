"""Pruned block linears of smollm2-135m, by method and pattern: writes prune_smollm2.json.

    pip install -e ".[demo]"
    python experiments/quality/prune_smollm2.py --text wikitext2_valid.txt --moments m.jm

The model is not rotated: a weight that stays is exact. The first half of TEXT calibrates (128 x 512
tokens), the second half measures. The peer is the published algorithm of SparseGPT, in NumPy and
float64. MOMENTS keeps the calibration between runs. A row that is in the file is not measured
again.
"""

import argparse
import hashlib
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.models import downloading

LENGTH, BATCH = 512, 4
PATTERNS = {
    "50%": jm.Bitmask(0.5),
    "2:4": jm.NM(2, 4),
    "60%": jm.Bitmask(0.4),
    "70%": jm.Bitmask(0.3),
    "4:8": jm.NM(4, 8),
}
METHODS = {
    "magnitude": lambda pattern: pattern,
    "Wanda": jm.Wanda,
    "SparseGPT": jm.SparseGPT,
    "SparseGPT + refit": lambda pattern: jm.Refit(jm.SparseGPT(pattern)),
}
BLOCKS = "layers/.*/kernel"


def float64_sparsegpt(
    w: np.ndarray, gram: np.ndarray, pattern, damping=0.01, block=128
) -> np.ndarray:
    """SparseGPT of weights (outputs, inputs) in float64. Frantar and Alistarh, 2023, algorithm 1.

    Unstructured pruning drops the lowest scores of a block of inputs, over all outputs together.
    """
    w, k = w.astype(np.float64), len(gram)
    damped = gram.astype(np.float64) + damping * gram.trace() / k * np.eye(k)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    for start in range(0, k, block):
        end = min(start + block, k)
        errors = np.zeros((len(w), end - start))
        drop = np.zeros(errors.shape, bool)
        score = lambda a, b: w[:, a:b] ** 2 / np.diag(factor)[a:b] ** 2
        if isinstance(pattern, jm.Bitmask):
            scores = score(start, end)
            drop = scores <= np.sort(scores, None)[int(scores.size * (1 - pattern.density))]
        for j in range(start, end):
            if isinstance(pattern, jm.NM) and j % pattern.m == 0:
                least = np.argsort(score(j, j + pattern.m), 1)[:, : pattern.m - pattern.n]
                np.put_along_axis(drop, least + j - start, True, 1)
            errors[:, j - start] = np.where(drop[:, j - start], w[:, j], 0) / factor[j, j]
            w[:, j:end] -= errors[:, j - start, None] * factor[j, j:end]
            w[drop[:, j - start], j] = 0
        w[:, end:] -= errors @ factor[start:end, end:]
    return w.astype(np.float32)


def pruned_by_peer(params: dict, stats: dict, pattern) -> dict:
    """The params with each block linear pruned by `peer`."""

    def prune_leaf(path, leaf):
        name = "/".join(k.key for k in path)
        if not (name.startswith("layers/") and name.endswith("kernel")):
            return leaf
        grams = np.asarray(stats[name].second)
        layers = zip(np.asarray(leaf), grams, strict=True)
        return jnp.stack([float64_sparsegpt(w.T, gram, pattern).T for w, gram in layers])

    return jax.tree_util.tree_map_with_path(prune_leaf, params)


def moments(path: pathlib.Path, model, ids: np.ndarray, count: int) -> dict:
    """{path: Moments} of the block linears, measured unless the file `path` has them."""
    if not path.exists():
        rows = jnp.asarray(ids[: count * LENGTH])
        batches = [(ids,) for ids in rows.reshape(-1, BATCH, LENGTH)]
        stats = jm.stats(model.apply, model.params, batches)
        jm.save(path, {name: m for name, m in stats.items() if name.startswith("layers/")})
    return jm.load(path)


def block_bytes(params: dict) -> int:
    """Bytes of the block linears."""
    leaves = zip(jm.paths(params), jax.tree.leaves(params, is_leaf=jm.is_encoded))
    return sum(jm.nbytes(x) for path, x in leaves if re.fullmatch(BLOCKS, path))


def by_codec(model, stats: dict, codec) -> tuple[dict, int]:
    """(dense params, bytes of the encoded block linears)."""
    plan = jm.choose(model.params, {BLOCKS: codec})
    encoded = jm.encode(model.params, plan, stats=stats)
    return jm.decode(encoded), block_bytes(encoded)


def by_peer(model, stats: dict, pattern) -> tuple[dict, int]:
    """(The params that the peer prunes, dense; the bytes of their block linears in `pattern`)."""
    shapes = jax.eval_shape(lambda p: p, model.params)
    encoded_shapes = jm.encode(shapes, jm.choose(shapes, {BLOCKS: pattern}))
    return pruned_by_peer(model.params, stats, pattern), block_bytes(encoded_shapes)


def encodings(model, stats: dict):
    """Yields (pattern, method, function that returns (dense params, block bytes))."""
    for name, pattern in PATTERNS.items():
        for method, wrap in METHODS.items():
            codec = wrap(pattern)
            yield name, method, lambda codec=codec: by_codec(model, stats, codec)
        if name in ("50%", "2:4"):
            encode = lambda pattern=pattern: by_peer(model, stats, pattern)
            yield name, "peer: SparseGPT in float64", encode


def quality_measure(model, ids: np.ndarray, windows: int):
    """A function from params to perplexity, KL and agreement with the dense model."""
    text = jnp.asarray(ids[: windows * 1024].reshape(-1, 1024))
    dense = jax.jit(model.apply)
    table = {"ids": text, "logits": jnp.stack([dense(model.params, w[None])[0] for w in text])}

    def look_up(table: dict, window: jax.Array) -> jax.Array:
        return table["logits"][(table["ids"] == window).all(-1).argmax()][None]

    def measure(params: dict) -> dict:
        options = {"reference": (look_up, table), "windows": windows}
        scores = json.loads(jm.evaluate(model.apply, params, ids, **options).to_json())
        score_keys = ("tokens", "perplexity", "dense_perplexity", "kl", "agreement")
        return {name: scores[name] for name in score_keys}

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--moments", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=128, help="windows of 512 tokens")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("smollm2-135m")
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(model.tokenizer.encode(t, add_special_tokens=False).ids)
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    results = {
        "command": f"python experiments/quality/prune_smollm2.py --text {args.text.name} "
        "--moments m.jm",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "calibration_tokens": args.calibration * LENGTH,
        "dense_block_bytes": block_bytes(model.params),
        "rows": [],
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}
    stats = moments(args.moments, model, calibration, args.calibration)
    measure = quality_measure(model, ids, args.windows)
    for pattern, method, encode_row in encodings(model, stats):
        key = {"pattern": pattern, "method": method, "windows": args.windows}
        if any(key.items() <= row.items() for row in results["rows"]):
            continue
        start = time.perf_counter()
        params, size = jax.block_until_ready(encode_row())
        row = {"block_bytes": size, "seconds_to_encode": round(time.perf_counter() - start, 1)}
        results["rows"].append(key | row | measure(params))
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        row = results["rows"][-1]
        print(pattern, method, row["perplexity"]["mean"], row["kl"]["mean"], flush=True)


if __name__ == "__main__":
    main()
