"""LoRA of a model in 4 bits, merged into the same bytes in three ways: merge_adapter.json.

    pip install -e ".[demo]"
    python experiments/quality/merge_adapter.py --model smollm2-135m --text wikitext2_valid.txt \
        --work DIR

MODEL is smollm2-135m or a path to stories260K.bin. Its linears have 4 bits in groups of 64, rounded
to nearest. Pairs of rank 16 learn the first half of TEXT in 200 steps of 2 x 128 tokens (Adam at
4e-4, for stories260K at 4e-3). Then they are merged: by
`jm.adapters.merge`, which reads 32 windows of 256 tokens of the first half; by rounding the sums to
nearest, with new scales; and by rounding them to nearest on the scales that there are. 32 windows
of 256 tokens of the second half measure. DIR keeps the pairs, so that a killed run goes on; a row
that is in the file already is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, attach, merge
from jaxmem.io.atomic import write_whole
from jaxmem.models import downloading
from jaxmem.solvers.grid_rounding import grid_codec

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, CODEC = "layers/(attn|mlp)/.*kernel", jm.Int(4, group=64)
STEPS, ROWS, LENGTH, RANK, SEED = 200, 2, 128, 16, 0
RATES = {"smollm2-135m": 4e-4, "stories260K": 4e-3}
WINDOWS, WIDTH = 32, 256  # that measure, and that merge reads


def tuned(model, base, ids, tx, path):
    """The pairs after the last step."""
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    order = np.random.default_rng(SEED).permutation(len(rows))[: STEPS * ROWS].reshape(STEPS, ROWS)

    def loss(pairs, base, rows):
        logits = model.apply(attach(base, pairs), rows)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    @jax.jit
    def step(state, base, rows):
        value, slope = jax.value_and_grad(loss)(state["pairs"], base, rows)
        updates, opt = tx.update(slope, state["opt"])
        pairs = optax.apply_updates(state["pairs"], updates)
        return {"pairs": pairs, "opt": opt, "step": state["step"] + 1}, value

    pairs = adapters(jax.random.key(SEED), base, RANK, LINEARS)
    state = {"pairs": pairs, "opt": tx.init(pairs), "step": jnp.int32(0)}
    if path.exists():
        arrays = jm.load(path)
        state = jax.tree.unflatten(
            jax.tree.structure(state), [arrays[str(i)] for i in range(len(arrays))]
        )
    for i in range(int(state["step"]), STEPS):
        state, value = step(state, base, rows[order[i]])
        if i % 10 == 9:
            print("step", i + 1, f"{value:.4f}", time.strftime("%X"), flush=True)
            jm.save(path, {str(j): x for j, x in enumerate(jax.tree.leaves(state))})
    return state["pairs"]


def measure(model, params, target, ids):
    """Perplexity of the windows of `ids`, and KL to the logits of the params `target`."""

    @jax.jit
    def numbers(params, target, rows):
        ours, theirs = (jax.nn.log_softmax(model.apply(p, rows)) for p in (params, target))
        nll = -jnp.take_along_axis(ours[:, :-1], rows[:, 1:, None], -1)
        return nll.mean(), (jnp.exp(ours) * (ours - theirs)).sum(-1).mean()

    rows = ids[: WINDOWS * WIDTH].reshape(WINDOWS // 4, 4, WIDTH)
    found = np.array([[float(x) for x in numbers(params, target, r)] for r in rows]).mean(0)
    return {"perplexity": float(np.exp(found[0])), "kl": float(found[1])}


def nearest(base, whole, *, same_scales):
    """The base with each of its leaves rounded to nearest to the leaf with the pair."""

    def one(leaf, whole):
        if not jm.is_encoded(leaf):
            return leaf
        dense = whole.decode().astype(jnp.float32)
        if not same_scales:
            return CODEC.encode(dense)
        codec, scale = grid_codec(leaf), leaf.scales().mT
        middle = jnp.full(scale.shape, 1 << leaf.bits - 1)
        return codec.round(dense.mT, scale.astype(leaf.scale.dtype), middle, leaf.fold, leaf.dtype)

    return jax.tree.map(one, base, whole, is_leaf=jm.is_encoded)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    name, model = pathlib.Path(args.model).stem, jm.models.load(args.model)
    if name == "smollm2-135m":  # its file holds 4 to 6 bits, and another basis is off their grid
        model = jm.models.rotate(model)
    file = pathlib.Path(args.model) if name == "stories260K" else downloading.fetch(name)
    dense = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), model.params)
    text = pathlib.Path(args.text).read_text()
    first, second = (np.asarray(model.tokenizer.encode(part).ids, np.int32)
                     for part in (text[: len(text) // 2], text[len(text) // 2 :]))  # fmt: skip
    base = jm.encode(dense, jm.choose(dense, {LINEARS: CODEC}))
    pairs = tuned(model, base, first, optax.adam(RATES[name]), args.work / f"{name}.jm")
    whole = attach(base, pairs)
    models = json.loads(PATH.read_text())["models"] if PATH.exists() else {}
    rows = models.setdefault(name, {"rows": {}})["rows"]
    models[name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    results = {
        "command": "python experiments/quality/merge_adapter.py --model MODEL --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "models": models,
    }

    def merged():
        start = time.perf_counter()
        rows = first[: WINDOWS * WIDTH].reshape(-1, 4, WIDTH)
        made = merge(base, pairs, fn=model.apply, batches=[(r,) for r in rows])
        cost = {"seconds": time.perf_counter() - start, "kl_of_tuning_text": made.kl}
        return made.params, cost | {"nbytes": made.nbytes, "nbytes_before": made.nbytes_before}

    forms = {
        "dense": lambda: (dense, {}),
        "base in 4 bits": lambda: (base, {"nbytes": jm.nbytes(base)}),
        "pairs attached": lambda: (whole, {"nbytes": jm.nbytes(whole)}),
        "merged": merged,
        "nearest, new scales": lambda: (nearest(base, whole, same_scales=False), {}),
        "nearest, same scales": lambda: (nearest(base, whole, same_scales=True), {}),
    }
    for form, make in forms.items():
        if form not in rows:
            params, cost = make()
            rows[form] = measure(model, params, whole, second) | cost
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
        print(form, rows[form], flush=True)
    gain = lambda form: rows["base in 4 bits"]["perplexity"] - rows[form]["perplexity"]
    kept = {form: gain(form) / gain("pairs attached") for form in list(forms)[3:]}
    ratio = rows["merged"]["kl"] / rows["nearest, new scales"]["kl"]
    models[name] |= {"gain_kept": kept, "kl_ratio": ratio}
    write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
    print(kept, ratio)


if __name__ == "__main__":
    main()
