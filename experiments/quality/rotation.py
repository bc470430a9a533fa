"""Rotating SmolLM2 does not change the function that it computes: writes rotation.json.

    pip install -e ".[demo]"
    python experiments/quality/rotation.py --text wikitext2_valid.txt

Measured on the second half of TEXT are the perplexity before and after, and the KL divergence.
"""

import argparse
import hashlib
import json
import pathlib

import jax
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading

WINDOWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = models.load("smollm2-135m")
    text = args.text.read_text(encoding="utf-8")
    encoded = model.tokenizer.encode(text[len(text) // 2 :], add_special_tokens=False)
    rotated = models.rotate(model)
    options = {"reference": (model.apply, model.params), "windows": WINDOWS}
    evaluation = jm.evaluate(rotated.apply, rotated.params, np.asarray(encoded.ids), **options)
    before, after = evaluation.dense_perplexity.mean, evaluation.perplexity.mean
    results = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": rotated.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": 0,
        "tokens": evaluation.tokens,
        "perplexity_before": before,
        "perplexity_after": after,
        "equal_to_4_digits": f"{before:.4g}" == f"{after:.4g}",
        "kl": evaluation.kl.mean,
        "agreement": evaluation.agreement.mean,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
