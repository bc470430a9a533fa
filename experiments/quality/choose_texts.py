"""Sixteen windows that choose_texts picks against random ones, by KL after GPTQ: choose_texts.json.

    pip install -e ".[demo]"
    python experiments/quality/choose_texts.py --stories FOLDER --text tinystories_a.txt

The model is stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json). The candidates
are windows of 128 tokens of the first half of TEXT, the second half measures. Block linears are
encoded in 3 and 4 bits by GPTQ of a weighted search. `moments` are those of the inputs of one
matrix in all layers; `disagreement` is the KL of the model rounded to 3 bits. Random rows are of
six draws.
"""

import argparse
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

WINDOW, CANDIDATES, TEST_WINDOWS, DRAWS = 128, 256, 64, 6
BLOCKS, WATCHED = "layers/.*/kernel", "layers/mlp/down/kernel"
CODECS = {
    "3 bits": jm.GPTQ(jm.Search(jm.Int(3, group=32, symmetric=False))),
    "4 bits": jm.GPTQ(jm.Search(jm.Int(4, group=32, symmetric=False))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    args = parser.parse_args()
    source = args.stories / "stories260K.bin"
    model = jm.models.load(source)
    text = args.text.read_text(encoding="utf-8")
    half = text.index("\n\n", len(text) // 2)
    ids = lambda part: np.asarray(model.tokenizer.encode(part, add_special_tokens=False).ids)
    windows = lambda part: ids(part)[: len(ids(part)) // WINDOW * WINDOW].reshape(-1, WINDOW)
    candidates = windows(text[:half])[:CANDIDATES].astype(np.int32)
    test = windows(text[half:])[:TEST_WINDOWS].astype(np.int32)
    run = jax.jit(model.apply)

    def divergence(params, rows) -> np.ndarray:
        """KL(dense ‖ params) of each row in nats a token."""
        dense = jax.nn.log_softmax(run(model.params, rows))
        other = jax.nn.log_softmax(run(params, rows))
        return np.asarray((jnp.exp(dense) * (dense - other)).sum(-1).mean(-1), np.float64)

    @jax.jit
    def stats(rows: jax.Array) -> dict:
        return jm.stats(model.apply, model.params, [(rows,)])

    def kl(rows, codec) -> float:
        plan = jm.choose(model.params, {BLOCKS: codec})
        return float(
            divergence(jm.decode(jm.encode(model.params, plan, stats=stats(rows))), test).mean()
        )

    coarse = jm.choose(model.params, {BLOCKS: jm.Int(3, group=32)})
    apart = divergence(jm.decode(jm.encode(model.params, coarse)), candidates)
    numbers = list(range(len(candidates)))
    grams = [np.asarray(stats(candidates[[i]])[WATCHED].second) for i in numbers]
    pick = jm.calibration.choose_texts
    chosen = {
        "16 by moments": [pick(numbers, 16, moments=lambda i: grams[i])],
        "16 by disagreement": [pick(numbers, 16, disagreement=lambda i: float(apart[i]))],
        "all": [numbers],
    }
    for count in (16, 64):
        draws = (np.random.default_rng(seed).permutation(numbers)[:count] for seed in range(DRAWS))
        chosen[f"{count} random"] = [list(map(int, draw)) for draw in draws]
    results = {
        "command": "python experiments/quality/choose_texts.py --stories FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": f"0 to {DRAWS - 1}",
        "model_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "candidates": len(candidates),
        "rows": {},
    }
    for bits, codec in CODECS.items():
        for name, picks in chosen.items():
            found = [kl(candidates[few], codec) for few in picks]
            row = {"kl": float(np.mean(found)), "least": min(found), "most": max(found)}
            results["rows"][f"{bits}, {name}"] = row
            print(bits, name, row, flush=True)
        random = results["rows"][f"{bits}, 64 random"]["kl"]
        for name in ("16 by moments", "16 by disagreement", "16 random"):
            row = results["rows"][f"{bits}, {name}"]
            row["over_64_random"] = row["kl"] / random
    results["picked_by_moments"] = chosen["16 by moments"][0]
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
