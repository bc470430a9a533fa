"""Each step of calibration on weights that were never rounded: writes calibrate_stories.json.

    pip install -e ".[demo]"
    python experiments/quality/calibrate_stories.py --stories FOLDER --text TEXT --rows "2 bits.*"

The model is stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json). Its block
linears are encoded in groups of 32 with zero points. Measured is the KL to the dense model on the
second half of TEXT, in windows of 256 tokens. The first half calibrates and trains, 96 windows in
batches of 8. A row that is in the file is not measured again.
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
FOUR_TURNS = lambda codec: jm.GPTQ(jm.Search(codec), turns=4)


def encoders(model, batches, stats):
    """{name of a row: function from a codec to the encoded params}."""
    plan_of = lambda codec: jm.choose(model.params, {LINEARS: codec})
    encoded = lambda codec: jm.encode(model.params, plan_of(codec), stats=stats())
    by_block = lambda codec, **kw: jm.encode_by_block(model, plan_of(codec), batches, **kw)
    dense, steps = (model.apply, model.params), batches * PASSES
    tuned = lambda tree, rate: jm.tune(*dense, tree, steps, learning_rate=rate)
    options = {"loss": jm.divergence, "learning_rate": 0.02}
    learned = lambda tree: jm.learn_rounding(*dense, tree, steps, **options)
    return {
        "RTN": encoded,
        "GPTQ": lambda codec: encoded(jm.GPTQ(codec)),
        "weighted search, GPTQ": lambda codec: encoded(SEARCHED(codec)),
        "weighted search, GPTQ, 4 turns": lambda codec: encoded(FOUR_TURNS(codec)),
        "by block": lambda codec: by_block(FOUR_TURNS(codec)),
        "by block, learned": lambda codec: by_block(FOUR_TURNS(codec), passes=PASSES),
        "4 turns, scales tuned": lambda codec: tuned(encoded(FOUR_TURNS(codec)), 3e-3),
        "4 turns, learned by logits": lambda codec: learned(encoded(FOUR_TURNS(codec))),
        "by block, learned, scales tuned": lambda codec: tuned(
            by_block(FOUR_TURNS(codec), passes=PASSES), 3e-3
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
    calibration_ids = ids(text[:half])[: BATCHES * BATCH * WINDOW].reshape(BATCHES, BATCH, WINDOW)
    batches, moments = [(jnp.asarray(rows),) for rows in calibration_ids], {}

    def stats():
        if not moments:
            moments.update(jm.stats(model.apply, model.params, batches))
        return moments

    results = {
        "command": "python experiments/quality/calibrate_stories.py --stories FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": 0,
        "model_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "calibration_tokens": int(calibration_ids.size),
        "training_steps": BATCHES * PASSES,
        "rows": json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {},
    }
    for bits in (4, 3, 2):
        for step, encode in encoders(model, batches, stats).items():
            name = f"{bits} bits, {step}"
            if name in results["rows"] or not re.fullmatch(args.rows, name):
                continue
            start = time.perf_counter()
            tree = jax.block_until_ready(encode(jm.Int(bits, group=32, symmetric=False)))
            seconds = time.perf_counter() - start
            leaves = [x for x in jax.tree.leaves(tree, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
            options = {"reference": (model.apply, model.params), "window": WINDOW, "batch": 16}
            test_ids = ids(text[half:])
            evaluation = jm.evaluate(model.apply, jm.decode(tree), test_ids, **options)
            scores = json.loads(evaluation.to_json())
            results["rows"][name] = {
                "bits_per_weight": 8 * jm.nbytes(leaves) / sum(x.size for x in leaves),
                **{key: scores[key] for key in ("perplexity", "dense_perplexity", "kl")},
                "tokens": scores["tokens"],
                "seconds": round(seconds, 1),
            }
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(name, results["rows"][name]["kl"], round(seconds, 1), flush=True)


if __name__ == "__main__":
    main()
