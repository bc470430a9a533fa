"""Integers alone against sparse, low-rank or narrower models with integers: iso_bytes.json.

    pip install -e ".[demo]"
    python experiments/quality/iso_bytes.py --text wikitext2_valid.txt --moments moments.jm

At about 3.0 and 2.5 bits for each of the 106.2M weights of smollm2-135m's block linears; codes,
scales, masks and factors all count. `turned` rows start from the rotated model, whose weights lie
off the 4-bit grid the checkpoint came from; the others round only what a sweep has moved off it.
The first half of TEXT calibrates (128 x 512 tokens), the second half measures. MOMENTS keeps the
calibration between runs, a file for each basis. A row that is in the file is not measured again.
`--rows` picks rows by a regex of their names.
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

LENGTH, AT_ONCE, CALIBRATION = 512, 4, 128
BLOCKS = "layers/.*/kernel"
WEIGHTS = 106_168_320
JUDGED = 4  # windows of the text that calibrates, its last ones, on which structures are compared
INT = lambda bits, group: jm.GPTQ(jm.Search(jm.Int(bits, group=group, symmetric=False)))
SPARSE = lambda pattern, bits: jm.SparseGPT(
    jm.Chain((pattern, jm.Int(bits, group=64, symmetric=False)))
)
NAMED = {  # (basis, name): codec of every block linear
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
STRUCTURED = {  # neurons that stay, and the codec: all bits count against all 106.2M weights
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
LIMITS = (3.03, 2.5)  # the first as Int(3) takes


def stored(params: dict) -> int:
    """Bytes of the block linears."""
    leaves = zip(jm.paths(params), jax.tree.leaves(params, is_leaf=jm.is_encoded))
    return sum(jm.nbytes(x) for path, x in leaves if re.fullmatch(BLOCKS, path))


def moments(path: pathlib.Path, model, ids: np.ndarray) -> dict:
    """{path: Moments} of the block linears, measured unless the file `path` has them."""
    if not path.exists():
        rows = jnp.asarray(ids[: CALIBRATION * LENGTH])
        batches = [(ids,) for ids in rows.reshape(-1, AT_ONCE, LENGTH)]
        measured = jm.stats(model.apply, model.params, batches)
        jm.save(path, {name: m for name, m in measured.items() if name.startswith("layers/")})
    return jm.load(path)


def jobs(models: dict, stats, calibration: np.ndarray):
    """(basis, name, how to make (model, encoded params)), the pure techniques first."""
    encode = lambda model, plan, given: (model, jm.encode(model.params, plan, stats=given))

    for (basis, name), codec in NAMED.items():
        plan = jm.choose(models[basis].params, {BLOCKS: codec})
        yield basis, name, lambda b=basis, plan=plan: encode(models[b], plan, stats(b))
    for name, (ffn, codec) in STRUCTURED.items():

        def make(ffn=ffn, codec=codec, name=name):
            small = jm.remove_neurons(models["turned"], ffn, stats("turned"))
            rows = calibration[: CALIBRATION * LENGTH].reshape(-1, AT_ONCE, LENGTH)
            fed = jm.stats(small.apply, small.params, [(jnp.asarray(ids),) for ids in rows])
            return encode(small, jm.choose(small.params, {BLOCKS: codec}), fed)

        yield "turned", name, make
    rows = jnp.asarray(calibration[: 4 * LENGTH].reshape(4, 1, LENGTH))
    turned = models["turned"]
    for bits in LIMITS:
        for name, candidates in BUDGETS.items():

            def make(bits=bits, candidates=candidates):
                given = stats("turned")
                curved = jm.fisher(turned.apply, turned.params, [(ids,) for ids in rows])
                kept = jm.nbytes(turned.params) - stored(turned.params)
                limit = {"nbytes": kept + int(bits * WEIGHTS / 8)}
                how = limit | {"stats": given, "sensitivity": curved}
                plan = jm.budget(turned.params, candidates={BLOCKS: candidates}, **how)
                print(plan, flush=True)
                return encode(turned, plan, given)

            yield "turned", f"budget of {bits} bits, {name}", make
    yield from narrowed(turned, stats, calibration)


def narrowed(model, stats, calibration: np.ndarray):
    """A budget over all, for the model with all and with fewer neurons; the least KL is taken.

    That is measured on the last windows of the text that calibrates.
    """
    rows = jnp.asarray(calibration[: CALIBRATION * LENGTH].reshape(-1, AT_ONCE, LENGTH))
    few = [(ids[:1],) for ids in rows[:4]]
    candidates = {BLOCKS: CANDIDATES}

    @functools.cache
    def sizes():
        """[(a model, its stats, how its weights count, what each candidate loses)]."""
        given = stats("turned")
        found = [(model, given)]
        for small, _ in jm.fewer(model, ["neurons"], stats=given, ids=rows[0]):
            found.append((small, jm.stats(small.apply, small.params, [(ids,) for ids in rows])))
        curved = [jm.fisher(small.apply, small.params, few) for small, _ in found]
        lost = [
            jm.errors(small.params, candidates, stats=given, white=True) for small, given in found
        ]
        return [(*pair, *how) for pair, *how in zip(found, curved, lost)]

    def best(bits):
        found = []
        for small, given, curved, lost in sizes():
            kept = jm.nbytes(small.params) - stored(small.params)
            limit = {"nbytes": kept + int(bits * WEIGHTS / 8)}
            how = limit | {"stats": given, "sensitivity": curved, "known": lost}
            plan = jm.budget(small.params, candidates=candidates, **how)
            encoded = jm.encode(small.params, plan, stats=given)
            against = {"reference": (model.apply, model.params), "window": LENGTH}
            seen = calibration[-JUDGED * LENGTH :]
            kl = jm.evaluate(small.apply, jm.decode(encoded), seen, **against).kl.mean
            print(small.config.ffn, kl, plan, flush=True)
            found.append((kl, small, encoded))
        return min(found, key=lambda each: each[0])[1:]

    for bits in LIMITS:
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
    found = {
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
        found |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def stats(basis: str) -> dict:
        file = args.moments.with_stem(f"{args.moments.stem}_{basis}")
        return moments(file, models[basis], calibration)

    rows = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
    dense = jax.jit(plain.apply)
    known = {"ids": rows, "logits": jnp.stack([dense(plain.params, w[None])[0] for w in rows])}

    def look_up(known: dict, window: jax.Array) -> jax.Array:
        return known["logits"][(known["ids"] == window).all(-1).argmax()][None]

    for basis, name, make in jobs(models, stats, calibration):
        key = {"basis": basis, "form": name, "windows": args.windows}
        if any(key.items() <= row.items() for row in found["rows"]):
            continue
        if not re.fullmatch(args.rows, name):
            continue
        model, encoded = make()
        how = {"reference": (look_up, known), "windows": args.windows}
        result = json.loads(jm.evaluate(model.apply, jm.decode(encoded), ids, **how).to_json())
        size = stored(encoded)
        row = {"block_bytes": size, "bits_per_weight": 8 * size / WEIGHTS}
        found["rows"].append(key | row | {n: result[n] for n in ("perplexity", "kl", "agreement")})
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
        print(basis, name, row["bits_per_weight"], result["kl"]["mean"], flush=True)


if __name__ == "__main__":
    main()
