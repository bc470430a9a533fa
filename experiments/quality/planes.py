"""One 8-bit artifact of nested planes at 8 to 3 bits, against encodings of each width: planes.json.

    pip install -e ".[demo]"
    python experiments/quality/planes.py --text wikitext2_valid.txt

The model is smollm2-135m, rotated; the block linears are encoded, in groups of 64. The second half
of TEXT measures. A row that is in the file already is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading

BITS = (8, 6, 5, 4, 3)
LINEARS = r"layers/.*kernel"


def rows(model):
    """Yields (name of the row, encoded params, further figures of the row)."""
    uses = jm.uses(model.apply, model.params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    encode = lambda codec: jm.encode(
        model.params, jm.choose(model.params, {LINEARS: codec}), uses=uses
    )
    planes = encode(jm.Planes(group=64))
    plane_ids = {id(a) for a in jax.tree.leaves(planes)}
    for bits in BITS:
        cut = jm.at_bits(planes, bits)
        copied = sum(id(a) not in plane_ids for a in jax.tree.leaves(cut))
        yield f"planes at {bits} bits", cut, {"arrays_copied": copied}
    for bits in BITS:
        yield f"made for {bits} bits", encode(jm.Int(bits, group=64, symmetric=False)), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.rotate(models.load("smollm2-135m"))
    text = args.text.read_text(encoding="utf-8")
    ids = model.tokenizer.encode(text[len(text) // 2 :], add_special_tokens=False).ids
    ids = np.asarray(ids)[: args.windows * 1024].reshape(-1, 1024)
    results = {
        "command": " ".join(["python", "experiments/quality/planes.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": f"{model.source}, rotated; {LINEARS} in groups of 64",
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "windows": args.windows,
        "rows": {},
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text())["rows"]}
    dense = jax.jit(model.apply)
    table = {"ids": jnp.asarray(ids)}
    table["logits"] = jnp.stack([dense(model.params, w[None])[0] for w in ids])
    look_up = lambda table, w: table["logits"][(table["ids"] == w).all(-1).argmax()][None]
    for name, tree, facts in rows(model):
        if name in results["rows"]:
            continue
        leaves = [x for x in jax.tree.leaves(tree, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
        options = {"reference": (look_up, table)}
        scores = jm.evaluate(model.apply, jm.decode(tree), ids.reshape(-1), **options)
        scores = json.loads(scores.to_json())
        results["rows"][name] = {
            "bits_per_weight": 8 * jm.nbytes(leaves) / sum(x.size for x in leaves),
            **{
                k: scores[k]
                for k in ("tokens", "perplexity", "dense_perplexity", "kl", "agreement")
            },
            **facts,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        row = results["rows"][name]
        print(
            name, row["bits_per_weight"], row["kl"]["mean"], row["perplexity"]["mean"], flush=True
        )


if __name__ == "__main__":
    main()
