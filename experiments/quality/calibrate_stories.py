"""Each step of calibration on weights that were never rounded: writes calibrate_stories.json.

    pip install -e ".[demo]"
    python experiments/quality/calibrate_stories.py --stories FOLDER --text TEXT --rows "2 bits.*"

stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json), block linears in groups of
32 with zero points; KL to the dense model on the second half of TEXT in windows of 256 tokens. The
first half calibrates and trains, 96 windows, batches of 8. A row that is in the file is not
measured again.
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
from jaxmem import models

WINDOW, BATCH, BATCHES, PASSES = 256, 8, 12, 10
LINEARS = "layers/.*kernel"
SEARCHED = lambda codec: jm.GPTQ(jm.Search(codec))
TURNED = lambda codec: jm.GPTQ(jm.Search(codec), turns=4)


def steps(model, batches, stats):
    """{name: what makes a tree of a codec}."""
    chosen = lambda codec: jm.choose(model.params, {LINEARS: codec})
    once = lambda codec: jm.encode(model.params, chosen(codec), stats=stats())
    blocks = lambda codec, **how: jm.encode_by_block(model, chosen(codec), batches, **how)
    many = batches * PASSES
    tune = lambda tree, rate: jm.tune(model.apply, model.params, tree, many, learning_rate=rate)
    how = {"loss": jm.divergence, "learning_rate": 0.02}
    learn = lambda tree: jm.learn_rounding(model.apply, model.params, tree, many, **how)
    return {
        "RTN": once,
        "GPTQ": lambda codec: once(jm.GPTQ(codec)),
        "weighted search, GPTQ": lambda codec: once(SEARCHED(codec)),
        "weighted search, GPTQ, 4 turns": lambda codec: once(TURNED(codec)),
        "by block": lambda codec: blocks(TURNED(codec)),
        "by block, learned": lambda codec: blocks(TURNED(codec), passes=PASSES),
        "4 turns, scales tuned": lambda codec: tune(once(TURNED(codec)), 3e-3),
        "4 turns, learned by logits": lambda codec: learn(once(TURNED(codec))),
        "by block, learned, scales tuned": lambda codec: tune(
            blocks(TURNED(codec), passes=PASSES), 3e-3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    source = args.stories / "stories260K.bin"
    model = models.load(source)
    text = args.text.read_text(encoding="utf-8")
    half = text.index("\n\n", len(text) // 2)
    ids = lambda part: np.asarray(model.tokenizer.encode(part, add_special_tokens=False).ids)
    seen = ids(text[:half])[: BATCHES * BATCH * WINDOW].reshape(BATCHES, BATCH, WINDOW)
    batches, kept = [(jnp.asarray(rows),) for rows in seen], {}

    def stats():
        if not kept:
            kept.update(jm.stats(model.apply, model.params, batches))
        return kept

    found = {
        "command": "python experiments/quality/calibrate_stories.py --stories FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": 0,
        "model_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "calibration_tokens": int(seen.size),
        "training_steps": BATCHES * PASSES,
        "rows": json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {},
    }
    for bits in (4, 3, 2):
        for step, make in steps(model, batches, stats).items():
            name = f"{bits} bits, {step}"
            if name in found["rows"] or not re.fullmatch(args.rows, name):
                continue
            start = time.perf_counter()
            tree = jax.block_until_ready(make(jm.Int(bits, group=32, symmetric=False)))
            seconds = time.perf_counter() - start
            leaves = [x for x in jax.tree.leaves(tree, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
            how = {"reference": (model.apply, model.params), "window": WINDOW, "batch": 16}
            apart = ids(text[half:])
            result = json.loads(jm.evaluate(model.apply, jm.decode(tree), apart, **how).to_json())
            found["rows"][name] = {
                "bits_per_weight": 8 * jm.nbytes(leaves) / sum(x.size for x in leaves),
                **{key: result[key] for key in ("perplexity", "dense_perplexity", "kl")},
                "tokens": result["tokens"],
                "seconds": round(seconds, 1),
            }
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, found["rows"][name]["kl"], round(seconds, 1), flush=True)


if __name__ == "__main__":
    main()
