"""200 steps of LoRA on SmolLM2 here and by PEFT, on the same weights and rows: peft_lora.json.

    pip install -e ".[demo]"          # and, there or in another environment:
    pip install torch transformers peft
    python experiments/quality/peft_lora.py FOLDER --text TEXT
    python experiments/quality/peft_lora_torch.py FOLDER

The linears of the rotated model have 4 bits. `peft_lora.py` trains pairs of rank 16 beside them in
STEPS steps of ROWS x LENGTH tokens of the first half of TEXT, by Adam whose rate rises for 20 steps
(`--warm-up`) to 2e-4 (`--rate`); a killed run goes on. It writes the base, decoded, as a checkpoint
of transformers, the pairs before the first step and after the last one as folders of PEFT, and the
rows of each step. `peft_lora_torch.py` trains the first pairs by PEFT in the same steps, and
measures both on the same 32 windows of 256 tokens of the second half. The loss of each tenth step
is in the file for both.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, attach
from jaxmem.models import downloading

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, GROUP, RANK, SEED = "layers/(attn|mlp)/.*kernel", 64, 16, 0
STEPS, ROWS, LENGTH, WINDOWS, WIDTH = 200, 2, 128, 32, 256


def trained(model, base, pairs, rows, tx, path):
    """(the pairs after the last step, [the loss of each tenth step])."""

    def loss(pairs, base, rows):
        logits = model.apply(attach(base, pairs), rows)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    @jax.jit
    def step(state, base, rows):
        value, slope = jax.value_and_grad(loss)(state["pairs"], base, rows)
        updates, opt = tx.update(slope, state["opt"])
        pairs = optax.apply_updates(state["pairs"], updates)
        losses = state["losses"].at[state["step"]].set(value)
        return {"pairs": pairs, "opt": opt, "step": state["step"] + 1, "losses": losses}, value

    state = {"pairs": pairs, "opt": tx.init(pairs), "step": jnp.int32(0)}
    state["losses"] = jnp.zeros(STEPS)
    if path.exists():
        arrays = jm.load(path)
        leaves = [arrays[str(i)] for i in range(len(arrays))]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    for i in range(int(state["step"]), STEPS):
        state, value = step(state, base, rows[i])
        if i % 10 == 9:
            print("step", i + 1, f"{value:.4f}", time.strftime("%X"), flush=True)
            jm.save(path, {str(j): x for j, x in enumerate(jax.tree.leaves(state))})
    return state["pairs"], [float(x) for x in state["losses"][9::10]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--warm-up", type=int, default=20)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = jm.models.rotate(jm.models.load("smollm2-135m"))  # its file holds 4 to 6 bits
    dense = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), model.params)
    base = jm.encode(dense, jm.choose(dense, {LINEARS: jm.Int(4, group=GROUP)}))
    text = args.text.read_text(encoding="utf-8")
    first, second = (np.asarray(model.tokenizer.encode(part).ids, np.int32)
                     for part in (text[: len(text) // 2], text[len(text) // 2 :]))  # fmt: skip
    rows = first[: len(first) // LENGTH * LENGTH].reshape(-1, LENGTH)
    order = np.random.default_rng(SEED).permutation(len(rows))[: STEPS * ROWS].reshape(STEPS, ROWS)
    start = adapters(jax.random.key(SEED), base, RANK, LINEARS)
    rise = lambda i: args.rate * jnp.minimum(1.0, (i + 1) / max(1, args.warm_up))
    path = args.folder / f"{args.rate:g}-{args.warm_up}.jm"
    pairs, losses = trained(model, base, start, rows[order], optax.adam(rise), path)
    decoded = dataclasses.replace(model, tensors=jm.decode(base))
    if not (args.folder / "base").exists():
        jm.interop.to_hf(decoded, args.folder / "base")
    jm.interop.to_peft(args.folder / "start", start, decoded)
    jm.interop.to_peft(args.folder / "ours", pairs, decoded)
    windows = second[: WINDOWS * WIDTH].reshape(-1, WIDTH)
    options = {"rate": args.rate, "warm_up": args.warm_up}
    np.savez(args.folder / "rows.npz", steps=rows[order], windows=windows, **options)
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    found |= {
        "command": "python experiments/quality/peft_lora.py FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    row = found.setdefault("rows", {}).setdefault(f"{args.rate:g}, warm-up {args.warm_up}", {})
    row["losses_here"] = losses
    PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
