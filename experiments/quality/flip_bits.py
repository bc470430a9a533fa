"""Bits of a model that flip in memory, by codec and by what they say: writes flip_bits.json.

    pip install -e ".[demo]"
    python experiments/quality/flip_bits.py --stories FOLDER --text tinystories_a.txt

The model is stories260K (FOLDER holds its llama2.c checkpoint and tokenizer.json). Its block
linears are encoded; then each bit of their codes, scales or masks flips with the probability of a
rate. `kl` is the mean KL divergence of the encoded model's tokens from those after the flips, in
nats, over DRAWS draws; `broken` is the share of tokens whose logits are not finite any more, which
`kl` does not count (null, if there are no others). Floats are all "scales": those of bfloat16, too,
and the values that pruning keeps; the places of 2:4 are "codes". TEXT gives WINDOWS windows of 256
tokens. A picture stands beside the JSON.
"""

import argparse
import hashlib
import json
import pathlib

import jax
import numpy as np

import jaxmem as jm
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation.flip_divergence import flip_divergence
from jaxmem.evaluation.flipped_bits import parts_of

BLOCKS, LENGTH, WINDOWS, DRAWS = "layers/.*/kernel", 256, 2, 6
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
CODECS = {
    "bfloat16": jm.Cast("bfloat16"),
    "8 bits": jm.Int(8),
    "8 bits, groups of 32": jm.Int(8, group=32),
    "4.5 bits": jm.Int(4, group=32),
    "3.3 bits": jm.Int(3, group=64, symmetric=False),
    "50 %": jm.Bitmask(0.5),
    "2:4": jm.NM(2, 4),
}


def mean(numbers: list[float]) -> float | None:
    return float(np.mean(numbers)) if numbers else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    args = parser.parse_args()
    source = args.stories / "stories260K.bin"
    model, text = jm.models.load(source), args.text.read_text(encoding="utf-8")
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    ids, rows = ids[: WINDOWS * LENGTH].reshape(WINDOWS, LENGTH), {}
    uses = jm.uses(model.apply, model.params, ids[:1])
    for name, codec in CODECS.items():
        plan = jm.choose(model.params, {BLOCKS: codec})
        params = jm.encode(model.params, plan, uses=uses)
        kept = params["layers"]
        rest = {key: x for key, x in params.items() if key != "layers"}
        forward = jax.jit(lambda kept, ids, rest=rest: model.apply({**rest, "layers": kept}, ids))
        rows[name] = {"bytes": jm.nbytes(params)}
        for part in (part for part in parts_of(kept) if part != "weights"):  # of the norms
            draws = [
                flip_divergence(forward, kept, ids, part=part, rates=RATES, key=jax.random.key(i))
                for i in range(DRAWS)
            ]
            rows[name][part] = {
                f"{rate:g}": {
                    "kl": mean([x.kl for x in few if x.kl is not None]),
                    "broken": mean([x.broken for x in few]),
                }
                for rate, few in zip(RATES, zip(*draws))
            }
        print(name, json.dumps(rows[name]), flush=True)
    results = {
        "command": "python experiments/quality/flip_bits.py --stories FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": f"0 to {DRAWS - 1}",
        "model_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    axes = (figure := new_figure(6, 4)).subplots()
    for number, (name, row) in enumerate(rows.items()):
        for part, line in (("codes", "-"), ("scales", "--"), ("masks", ":")):
            if part in row:
                kl = [row[part][f"{rate:g}"]["kl"] or np.nan for rate in RATES]
                axes.plot(RATES, kl, f"C{number}{line}", label=f"{name}, {part}")
    axes.set(xscale="log", yscale="log", xlabel="share of bits that flip", ylabel="KL, nats")
    axes.legend(fontsize=6)
    figure.savefig(path.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
