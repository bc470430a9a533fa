"""What `Remat(..., held=...)` saves and costs: held_residuals.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/held_residuals.py

1. `residual_bytes` of a LoRA step of llama-8b (int8 weights, 8 x 2,048 tokens, 4 micro-batches),
   with what its policy keeps held in each way: counted before any compiler, of one micro-batch.
2. The gradient of a Llama of 8 layers of width 256 and 4 x 256 tokens, by the compiler of a CPU.
3. A byte-level Llama of 3 layers is trained on the text of docs/ from several seeds, with exact and
   with encoded residuals; `difference` is that of the losses on bytes that are held out.
With --device "tpu v5e:1x1" the LoRA step of 1 is also compiled for it. Nothing but 3 is run.
A row that is in the file already is not computed again.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler.residuals import residuals
from jaxmem.io.atomic import write_whole
from jaxmem.planner.train_and_serve_steps import Built

PATH = pathlib.Path(__file__).with_suffix(".json")
HELD = (None, "int8")
SEEDS, STEPS, ROWS, WIDTH = (0, 1), 150, 8, 64
CONFIG = llama.Config(vocab=256, width=64, ffn=192, layers=3, heads=4, kv_heads=4, head_dim=16)


def policy(held: str | None) -> jm.Remat:
    """The policy that `plan` chooses for the LoRA step, with a way of holding."""
    return jm.Remat("named", ("attn_out",), held=held)


def built(held: str | None) -> Built:
    """The LoRA step of llama-8b on a TPU v5e."""
    knobs = dict(encoding=jm.Int(8), remat=policy(held), micro=4, chunk=128)
    return jm.build(jm.Recipe("llama-8b", "tpu v5e:1x1", "lora", 8, 2048, **knobs))


def kept(held: str | None) -> int:
    """The bytes that a micro-batch of the LoRA step keeps for its backward pass."""
    step = built(held)
    state, params, ids = step.arguments
    rows = jax.ShapeDtypeStruct((2, 2048), ids.dtype)
    return residuals(step.loss, state["params"], params, rows)


def compiled(fn: Callable, *args: Any, device: str) -> dict:
    """What a compiler says of a program."""
    m = jm.memory(fn, *args, device=device)
    numbers = dict(peak_bytes=m.peak, temp_bytes=m.temp, flops=m.flops, traffic_bytes=m.traffic)
    return {"device": device, "program": m.hash, "versions": m.versions, **numbers}


def small_gradient(held: str | None) -> tuple:
    """(the gradient of the small Llama of 2, its arguments)."""
    sizes = dict(vocab=256, width=256, ffn=1024, layers=8, heads=4, kv_heads=4, head_dim=64)
    model = llama.module(llama.Config(**sizes))
    ids = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    body = jm.remat(model.apply, policy(held))
    return jax.grad(lambda params, ids: jnp.square(body(params, ids)).mean()), params, ids


def text() -> np.ndarray:
    """The bytes of the pages in docs/."""
    pages = sorted((pathlib.Path(__file__).parents[2] / "docs").rglob("*.md"))
    return np.frombuffer(b"".join(page.read_bytes() for page in pages), np.uint8).astype(np.int32)


def trained(policy: jm.Remat, seed: int) -> float:
    """The loss on held-out bytes, in nats, after training with a policy."""
    model, data = llama.module(CONFIG), text()
    split = len(data) * 9 // 10
    draw = np.random.default_rng(seed)

    def batch(rows, start, stop):
        places = draw.integers(start, stop - WIDTH, rows)
        return jnp.asarray(np.stack([data[i : i + WIDTH] for i in places]))

    body = jm.remat(lambda params, ids: model.apply({"params": params}, ids), policy)

    def loss(params, ids):
        logits = body(params, ids)[:, :-1].astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, ids):
        updates, state = optimizer.update(jax.grad(loss)(params, ids), state)
        return optax.apply_updates(params, updates), state

    params = jax.jit(model.init)(jax.random.key(seed), batch(1, 0, split))["params"]
    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = step(params, state, batch(ROWS, 0, split))
    draw = np.random.default_rng(1234)
    score = jax.jit(loss)
    return float(np.mean([score(params, batch(ROWS, split, len(data))) for _ in range(32)]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    old = json.loads(PATH.read_text()) if PATH.exists() else {}
    results = {
        "command": "python experiments/memory/held_residuals.py",
        "jax": jax.__version__,
        "backend": "CPU; llama-8b is not run",
        "seed": list(options.seeds),
        "model": "llama-8b by shapes; a Llama of 8 layers by shapes; a trained one of 3 layers",
    }
    for name in ("residual_bytes", "small", "step", "losses", "difference"):
        results[name] = old.get(name, {})

    def row(part: str, name: Any, make: Callable) -> None:
        if str(name) not in results[part]:
            results[part][str(name)] = make()
            print(part, name, results[part][str(name)], flush=True)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())

    for held in HELD:
        row("residual_bytes", held, lambda held=held: kept(held))
    for held in HELD:
        row("small", held, lambda held=held: compiled(*small_gradient(held), device="cpu"))
    for held in HELD if options.device else ():
        step = built(held)
        row("step", held, lambda step=step: compiled(
            step.step, *step.arguments, device=options.device))  # fmt: skip
    losses = results["losses"]
    for seed in options.seeds:
        for held in HELD:
            row("losses", f"{held}, seed {seed}", lambda held=held, seed=seed: round(
                trained(policy(held), seed), 5))  # fmt: skip
        row("difference", f"seed {seed}", lambda seed=seed: round(
            losses[f"int8, seed {seed}"] - losses[f"None, seed {seed}"], 5))  # fmt: skip


if __name__ == "__main__":
    main()
