"""LoRA, rsLoRA, DoRA and mixed ranks on SmolLM2: ours in PEFT and PEFT's here, peft_kinds.json.

    python experiments/quality/peft_lora.py FOLDER --text TEXT       # and its part that torch runs
    python experiments/quality/peft_kinds.py write FOLDER
    python experiments/quality/peft_kinds_torch.py FOLDER
    python experiments/quality/peft_kinds.py read FOLDER

LoRA is what `peft_lora.py` has trained in 200 steps here and by PEFT. Pairs of the other kinds
learn 20 steps of 1 x 128 tokens, by Adam at 1e-3: `write` trains ours and writes them for PEFT,
`peft_kinds_torch.py` trains PEFT's. Each program computes the logits of one window of 256 tokens of
text that no pair has seen, without an adapter and with each of them, from the file for the
adapters of the other program, in float32 and in float64. The file has the largest difference of the
two programs. Both compute norms and angles in float32 whatever the weights are, so for float64
`jnp.float32` and `torch.float32` are set to float64.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, attach, with_alpha, with_magnitudes

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, SEED, STEPS, LENGTH, RATE, ALPHA = "layers/(attn|mlp)/.*kernel", 0, 20, 128, 1e-3, 8.0
MIXED = {".*attn/.*kernel": 16, ".*mlp/down/kernel": 4, ".*mlp/.*kernel": 8}
KINDS = ("LoRA", "rsLoRA", "DoRA", "mixed ranks")
DTYPES = ("float32", "float64")


def first_pairs(kind, params):
    rank = MIXED if kind == "mixed ranks" else 16 if kind == "rsLoRA" else 8
    pairs = adapters(jax.random.key(SEED), params, rank, LINEARS)
    return with_magnitudes(params, pairs) if kind == "DoRA" else pairs


def scaled(kind, pairs):
    return with_alpha(pairs, ALPHA, root=True) if kind == "rsLoRA" else pairs


def trained(kind, model, rows):
    tx = optax.adam(RATE)

    def loss(pairs, params, rows):
        logits = model.apply(attach(params, scaled(kind, pairs)), rows)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    @jax.jit
    def step(pairs, opt, params, rows):
        value, slope = jax.value_and_grad(loss)(pairs, params, rows)
        updates, opt = tx.update(slope, opt)
        return optax.apply_updates(pairs, updates), opt, value

    pairs = first_pairs(kind, model.params)
    opt = tx.init(pairs)
    for i in range(STEPS):
        pairs, opt, value = step(pairs, opt, model.params, rows[i, :1])
    print(kind, float(value), flush=True)
    return pairs


def logits_of(model, every, window):
    """{name/dtype: logits} of {name: pairs}; all that follows is in float64."""
    run = lambda params, pairs, ids: model.apply(attach(params, pairs), ids)
    found = {}
    for dtype in DTYPES:
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
            jnp.float32 = jnp.float64
        of_dtype = lambda tree, dtype=dtype: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
        params = of_dtype(model.params)
        for name, pairs in every.items():
            found[f"{name}/{dtype}"] = np.asarray(jax.jit(run)(params, of_dtype(pairs), window))
    return found


def write(folder, model, arrays):
    every = {"base": {}, "ours/LoRA": jm.interop.from_peft(folder / "ours", model)}
    for kind in KINDS[1:]:
        pairs = trained(kind, model, arrays["steps"])
        every[f"ours/{kind}"] = scaled(kind, pairs)
        options = {"alpha": ALPHA, "root": True} if kind == "rsLoRA" else {}
        (folder / "kinds/ours").mkdir(parents=True, exist_ok=True)
        jm.interop.to_peft(folder / "kinds/ours" / kind, pairs, model, **options)
    np.savez(folder / "kinds/ours.npz", **logits_of(model, every, arrays["windows"][:1]))


def read(folder, model, arrays):
    places = {"LoRA": folder / "theirs"} | {k: folder / "kinds/theirs" / k for k in KINDS[1:]}
    every = {f"theirs/{k}": jm.interop.from_peft(path, model) for k, path in places.items()}
    here = logits_of(model, every, arrays["windows"][:1]) | dict(np.load(folder / "kinds/ours.npz"))
    there = np.load(folder / "kinds/torch.npz")
    apart = lambda key: {
        dtype: float(np.abs(here[f"{key}/{dtype}"] - there[f"{key}/{dtype}"]).max())
        for dtype in DTYPES
    }
    moved = lambda key: float(np.abs(here[f"{key}/float64"] - here["base/float64"]).max())
    rows = {
        kind: {
            "ours in PEFT": apart(f"ours/{kind}"),
            "PEFT's here": apart(f"theirs/{kind}"),
            "what the adapters change": [moved(f"{x}/{kind}") for x in ("ours", "theirs")],
        }
        for kind in KINDS
    }
    results = {
        "command": "python experiments/quality/peft_kinds.py write|read FOLDER",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "versions": json.loads((folder / "kinds/versions.json").read_text()),
        "seed": SEED,
    }
    lora = json.loads(PATH.with_name("peft_lora.json").read_text())
    results |= {name: lora[name] for name in ("model_sha256", "text_sha256")}
    results |= {"largest_logit": float(np.abs(here["base/float64"]).max())}
    results["largest_differences"] = {"no adapter": apart("base")} | rows
    PATH.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["largest_differences"], indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("write", "read"))
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    model = jm.models.load(args.folder / "base")
    arrays = np.load(args.folder / "rows.npz")
    {"write": write, "read": read}[args.stage](args.folder, model, arrays)
