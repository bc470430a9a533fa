"""Integers alone against sparse, low-rank or narrower models with integers: iso_bytes.json.

    pip install -e ".[demo]"
    python experiments/quality/iso_bytes.py --text wikitext2_valid.txt --moments moments.jm

The rows take about 3.0 and 2.5 bits for each of the 106.2M weights of smollm2-135m's block linears;
codes, scales, masks and factors all count. `turned` rows start from the rotated model, whose
weights lie off the 4-bit grid that the checkpoint came from; `plain` rows lose only what the solver
has moved off that grid. The first half of TEXT calibrates (128 x 512 tokens), the second half
measures. MOMENTS keeps the calibration between runs, one file for each basis. A row that is in the
file is not measured again. `--rows` picks rows by a regex of their names.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.models import downloading

LENGTH, BATCH, CALIBRATION = 512, 4, 128
BLOCKS = "layers/.*/kernel"
WEIGHTS = 106_168_320
COMPARED_WINDOWS = 4  # last windows of the calibration text, by which structures are compared
INT = lambda bits, group: jm.GPTQ(jm.Search(jm.Int(bits, group=group, symmetric=False)))
SPARSE = lambda pattern, bits: jm.SparseGPT(
    jm.Chain((pattern, jm.Int(bits, group=64, symmetric=False)))
)
UNIFORM_CODECS = {  # (basis, name): codec of every block linear
    ("turned", "Int(3)"): INT(3, None),
    ("plain", "2:4 + Int(4)"): SPARSE(jm.NM(2, 4), 4),
    ("turned", "2:4 + Int(4)"): SPARSE(jm.NM(2, 4), 4),
    ("turned", "Int(2, group=64) + rank 28"): jm.QERA(INT(2, 64), 28),
    ("turned", "Int(2, group=48)"): INT(2, 48),
    ("turned", "Int(2, group=64) + rank 6"): jm.QERA(INT(2, 64), 6),
    ("plain", "35 % + Int(4)"): SPARSE(jm.Bitmask(0.35), 4),
    ("plain", "45 % + Int(4)"): SPARSE(jm.Bitmask(0.45), 4),
    ("plain", "2:4 + Int(3)"): SPARSE(jm.NM(2, 4), 3),
}
STRUCTURED = {  # name: (neurons that stay, codec); bits are divided by all 106.2M weights
    "1306 neurons + Int(3, group=64)": (1306, INT(3, 64)),
    "1006 neurons + Int(3, group=64)": (1006, INT(3, 64)),
}
INTEGERS = [INT(2, 32), INT(2, 48), INT(2, 64), INT(3, 64), INT(3, None), INT(4, 64)]
CANDIDATES = [
    *INTEGERS,
    SPARSE(jm.NM(2, 4), 3),
    SPARSE(jm.NM(2, 4), 4),
    SPARSE(jm.Bitmask(0.35), 4),
    jm.QERA(INT(2, 64), 28),
    jm.Chain((jm.LowRank(96), jm.Int(8))),
]
BUDGETS = {"Int alone": INTEGERS, "all": CANDIDATES}
BITS_LIMITS = (3.03, 2.5)  # bits a weight; Int(3) takes the first


def block_bytes(params: dict) -> int:
    """Bytes of the block linears."""
    leaves = zip(jm.paths(params), jax.tree.leaves(params, is_leaf=jm.is_encoded))
    return sum(jm.nbytes(x) for path, x in leaves if re.fullmatch(BLOCKS, path))


def moments(path: pathlib.Path, model, ids: np.ndarray) -> dict:
    """{path: Moments} of the block linears, measured unless the file `path` has them."""
    if not path.exists():
        rows = jnp.asarray(ids[: CALIBRATION * LENGTH])
        batches = [(ids,) for ids in rows.reshape(-1, BATCH, LENGTH)]
        stats = jm.stats(model.apply, model.params, batches)
        jm.save(path, {name: m for name, m in stats.items() if name.startswith("layers/")})
    return jm.load(path)


def encodings(models: dict, stats, calibration: np.ndarray):
    """Yields (basis, name, function that returns (model, encoded params))."""
    encode = lambda model, plan, moments: (model, jm.encode(model.params, plan, stats=moments))

    for (basis, name), codec in UNIFORM_CODECS.items():
        plan = jm.choose(models[basis].params, {BLOCKS: codec})
        yield basis, name, lambda b=basis, plan=plan: encode(models[b], plan, stats(b))
    for name, (ffn, codec) in STRUCTURED.items():

        def encode_row(ffn=ffn, codec=codec, name=name):
            small = jm.remove_neurons(models["turned"], ffn, stats("turned"))
            rows = calibration[: CALIBRATION * LENGTH].reshape(-1, BATCH, LENGTH)
            small_stats = jm.stats(small.apply, small.params, [(jnp.asarray(ids),) for ids in rows])
            return encode(small, jm.choose(small.params, {BLOCKS: codec}), small_stats)

        yield "turned", name, encode_row
    rows = jnp.asarray(calibration[: 4 * LENGTH].reshape(4, 1, LENGTH))
    rotated = models["turned"]
    for bits in BITS_LIMITS:
        for name, candidates in BUDGETS.items():

            def encode_row(bits=bits, candidates=candidates):
                rotated_stats = stats("turned")
                sensitivity = jm.fisher(rotated.apply, rotated.params, [(ids,) for ids in rows])
                other_bytes = jm.nbytes(rotated.params) - block_bytes(rotated.params)
                limit = {"nbytes": other_bytes + int(bits * WEIGHTS / 8)}
                options = limit | {"stats": rotated_stats, "sensitivity": sensitivity}
                plan = jm.budget(rotated.params, candidates={BLOCKS: candidates}, **options)
                print(plan, flush=True)
                return encode(rotated, plan, rotated_stats)

            yield "turned", f"budget of {bits} bits, {name}", encode_row
    yield from narrowed_budgets(rotated, stats, calibration)


def narrowed_budgets(model, stats, calibration: np.ndarray):
    """Yields budgets over all candidates, for the model with all or with fewer neurons.

    The number of neurons with the least KL on the last windows of the calibration text is taken.
    """
    rows = jnp.asarray(calibration[: CALIBRATION * LENGTH].reshape(-1, BATCH, LENGTH))
    fisher_batches = [(ids[:1],) for ids in rows[:4]]
    candidates = {BLOCKS: CANDIDATES}

    @functools.cache
    def sizes():
        """[(model, its stats, its Fisher sensitivity, the error of each candidate)]."""
        model_stats = stats("turned")
        pairs = [(model, model_stats)]
        for small, _ in jm.fewer(model, ["neurons"], stats=model_stats, ids=rows[0]):
            pairs.append((small, jm.stats(small.apply, small.params, [(ids,) for ids in rows])))
        return [
            (
                small,
                model_stats,
                jm.fisher(small.apply, small.params, fisher_batches),
                jm.errors(small.params, candidates, stats=model_stats, white=True),
            )
            for small, model_stats in pairs
        ]

    def best(bits):
        outcomes = []
        for small, model_stats, sensitivity, errors in sizes():
            other_bytes = jm.nbytes(small.params) - block_bytes(small.params)
            limit = {"nbytes": other_bytes + int(bits * WEIGHTS / 8)}
            budget_options = limit | {
                "stats": model_stats,
                "sensitivity": sensitivity,
                "known": errors,
            }
            plan = jm.budget(small.params, candidates=candidates, **budget_options)
            encoded = jm.encode(small.params, plan, stats=model_stats)
            options = {"reference": (model.apply, model.params), "window": LENGTH}
            compared_ids = calibration[-COMPARED_WINDOWS * LENGTH :]
            kl = jm.evaluate(small.apply, jm.decode(encoded), compared_ids, **options).kl.mean
            print(small.config.ffn, kl, plan, flush=True)
            outcomes.append((kl, small, encoded))
        return min(outcomes, key=lambda outcome: outcome[0])[1:]

    for bits in BITS_LIMITS:
        name = f"budget of {bits} bits, all, of some neurons"
        yield "turned", name, functools.partial(best, bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--moments", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rows", default=".*")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    plain = jm.models.load("smollm2-135m")
    models = {"plain": plain, "turned": jm.models.rotate(plain)}
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(plain.tokenizer.encode(t, add_special_tokens=False).ids)
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    results = {
        "command": f"python experiments/quality/iso_bytes.py --text {args.text.name} "
        "--moments moments.jm",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": plain.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "calibration_tokens": CALIBRATION * LENGTH,
        "rows": [],
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def stats(basis: str) -> dict:
        file = args.moments.with_stem(f"{args.moments.stem}_{basis}")
        return moments(file, models[basis], calibration)

    rows = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
    dense = jax.jit(plain.apply)
    table = {"ids": rows, "logits": jnp.stack([dense(plain.params, w[None])[0] for w in rows])}

    def look_up(table: dict, window: jax.Array) -> jax.Array:
        return table["logits"][(table["ids"] == window).all(-1).argmax()][None]

    for basis, name, encode_row in encodings(models, stats, calibration):
        key = {"basis": basis, "form": name, "windows": args.windows}
        if any(key.items() <= row.items() for row in results["rows"]):
            continue
        if not re.fullmatch(args.rows, name):
            continue
        model, encoded = encode_row()
        options = {"reference": (look_up, table), "windows": args.windows}
        scores = json.loads(jm.evaluate(model.apply, jm.decode(encoded), ids, **options).to_json())
        size = block_bytes(encoded)
        row = {"block_bytes": size, "bits_per_weight": 8 * size / WEIGHTS}
        results["rows"].append(
            key | row | {k: scores[k] for k in ("perplexity", "kl", "agreement")}
        )
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(basis, name, row["bits_per_weight"], scores["kl"]["mean"], flush=True)


if __name__ == "__main__":
    main()
