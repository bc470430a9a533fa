"""200 steps of LoRA on SmolLM2 here and by PEFT, on the same weights and rows: peft_lora.json.

    python experiments/quality/merge_adapter.py --model smollm2-135m --text TEXT --work DIR
    pip install -e ".[demo]"          # and, there or in another environment:
    pip install torch transformers peft
    python experiments/quality/peft_lora.py write FOLDER --text TEXT --work DIR
    python experiments/quality/peft_lora.py train FOLDER
    python experiments/quality/peft_lora.py read FOLDER

`merge_adapter.py` trains our pairs, from `adapters(jax.random.key(0), ...)`, beside linears of 4
bits. `write` decodes the same base as a checkpoint of transformers, and writes the pairs before the
first step and after the last one as folders of PEFT, with the rows of each step and our logits.
`train` opens our trained pairs in PEFT, trains the others there in the same steps (torch.optim.Adam
at 4e-4, 2 x 128 tokens), and measures both on the same 32 windows of 256 tokens. `read` opens
what PEFT has trained, here.
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import pathlib
import time

import numpy as np

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, GROUP, RANK, SEED = "layers/(attn|mlp)/.*kernel", 64, 16, 0
STEPS, ROWS, LENGTH, RATE, WINDOWS, WIDTH = 200, 2, 128, 4e-4, 32, 256


def base_model():
    """The rotated model whose linears have 4 bits."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    import jaxmem as jm

    model = jm.models.rotate(jm.models.load("smollm2-135m"))
    dense = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), model.params)
    base = jm.encode(dense, jm.choose(dense, {LINEARS: jm.Int(4, group=GROUP)}))
    return dataclasses.replace(model, tensors=jm.decode(base))


def our_logits(model, pairs, rows):
    import jax

    import jaxmem as jm

    run = jax.jit(lambda params, rows: model.apply(jm.adapters.attach(params, pairs), rows))
    return np.asarray(run(model.params, rows))


def record(results: dict) -> None:
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    PATH.write_text(json.dumps(found | results, indent=1) + "\n")
    print(results)


def write(args) -> None:
    import jax

    import jaxmem as jm
    from jaxmem.models import downloading

    model = base_model()
    text = args.text.read_text(encoding="utf-8")
    first, second = (np.asarray(model.tokenizer.encode(part).ids, np.int32)
                     for part in (text[: len(text) // 2], text[len(text) // 2 :]))  # fmt: skip
    rows = first[: len(first) // LENGTH * LENGTH].reshape(-1, LENGTH)
    order = np.random.default_rng(SEED).permutation(len(rows))[: STEPS * ROWS].reshape(STEPS, ROWS)
    windows = second[: WINDOWS * WIDTH].reshape(-1, WIDTH)
    pairs = jm.adapters.adapters(jax.random.key(SEED), model.params, RANK, LINEARS)
    arrays = jm.load(args.work / "smollm2-135m.jm")  # the leaves of {"opt", "pairs", "step"}
    count = len(jax.tree.leaves(pairs))
    leaves = [arrays[str(i)] for i in range(len(arrays) - 1 - count, len(arrays) - 1)]
    trained = jax.tree.unflatten(jax.tree.structure(pairs), leaves)
    if int(arrays[str(len(arrays) - 1)]) != STEPS:
        raise ValueError("merge_adapter.py has not trained all steps yet")
    args.folder.mkdir(parents=True, exist_ok=True)
    jm.interop.to_hf(model, args.folder / "base")
    jm.interop.to_peft(args.folder / "start", pairs, model)
    jm.interop.to_peft(args.folder / "ours", trained, model)
    logits = our_logits(model, trained, windows[:1])
    np.savez(args.folder / "rows.npz", steps=rows[order], windows=windows, logits=logits)
    record({
        "command": "python experiments/quality/peft_lora.py write|train|read FOLDER",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    })  # fmt: skip


def train(args) -> None:
    import torch
    import transformers
    from peft import PeftModel

    arrays = np.load(args.folder / "rows.npz")
    windows = torch.tensor(arrays["windows"], dtype=torch.long)
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(
        args.folder / "base", dtype=torch.float32
    )

    def perplexity(model) -> float:
        with torch.no_grad():
            losses = [model(input_ids=x, labels=x).loss.item() for x in windows.split(4)]
        return math.exp(sum(losses) / len(losses))

    model = PeftModel.from_pretrained(load(), args.folder / "ours").eval()
    with torch.no_grad():
        logits = model(input_ids=windows[:1]).logits.numpy()
    error = float(np.abs(logits - arrays["logits"]).max())
    ours = {"perplexity": perplexity(model), "largest_logit_error_in_peft": error}
    model = PeftModel.from_pretrained(load(), args.folder / "start", is_trainable=True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    begin = time.perf_counter()
    for i, rows in enumerate(torch.tensor(arrays["steps"], dtype=torch.long)):
        optimizer.zero_grad()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        if i % 10 == 9:
            print("step", i + 1, f"{loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - begin
    model.eval().save_pretrained(args.folder / "theirs")
    with torch.no_grad():
        np.save(args.folder / "theirs.npy", model(input_ids=windows[:1]).logits.numpy())
    theirs = {"perplexity": perplexity(model), "seconds": seconds}
    record({
        "versions": {x: importlib.metadata.version(x) for x in ("torch", "transformers", "peft")},
        "ours": ours,
        "peft": theirs,
        "difference": ours["perplexity"] / theirs["perplexity"] - 1,
    })  # fmt: skip


def read(args) -> None:
    import jaxmem as jm

    model = base_model()
    pairs = jm.interop.from_peft(args.folder / "theirs", model)
    logits = our_logits(model, pairs, np.load(args.folder / "rows.npz")["windows"][:1])
    error = float(np.abs(logits - np.load(args.folder / "theirs.npy")).max())
    record({"largest_logit_error_of_theirs_here": error})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("write", "train", "read"))
    parser.add_argument("folder", type=pathlib.Path)
    for name in ("text", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    args = parser.parse_args()
    {"write": write, "train": train, "read": read}[args.stage](args)
