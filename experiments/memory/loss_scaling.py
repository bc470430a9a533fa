"""Bytes of a step with a scaled loss, by a TPU's compiler: loss_scaling.json.

    pip install -e ".[tpu]"
    python experiments/memory/loss_scaling.py

An MLP of 4 layers of width 2,048 and 1,024 tokens is trained by Adam in float16 with float32 params
and state, which are donated. Nothing is run. A row that is in the file already is not compiled
again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import optax

import jaxmem as jm
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
DEVICE, LAYERS, WIDTH, TOKENS = "tpu v5e:1x1", 4, 2048, 1024


def model(params: jax.Array, x: jax.Array) -> jax.Array:
    """The loss of an MLP whose layers are scanned."""
    return jnp.square(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]).mean()


def measure(is_scaled: bool) -> dict:
    """The row of one step."""
    loss = jm.train.in_precision(model, jm.train.Precision(compute=jnp.float16))
    optimizer = optax.adam(1e-3)
    if is_scaled:
        optimizer = jm.train.scaled(optimizer)

    def step(params, state, x):
        scale = jm.train.scale_of(state) if is_scaled else 1.0
        slope = jax.grad(lambda params: loss(params, x) * scale)(params)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32)
    state = jax.eval_shape(optimizer.init, params)
    m = jm.memory(step, params, state, x, device=DEVICE, donate_argnums=(0, 1))
    return {
        "compiled": m.exact,
        "temp_bytes": m.temp,
        "peak_bytes": m.peak,
        "arguments_bytes": m.arguments,
        "traffic_bytes": m.traffic,
        "program": m.hash,
        "versions": m.versions,
    }


def main() -> None:
    results = {
        "command": "python experiments/memory/loss_scaling.py",
        "jax": jax.__version__,
        "backend": f"{DEVICE}, compiled and not run",
        "seed": None,
        "model": f"shapes only: {LAYERS} layers of {WIDTH} x {WIDTH}",
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }
    rows = results["rows"]
    for name, is_scaled in (("unscaled", False), ("scaled", True)):
        if name not in rows:
            rows[name] = measure(is_scaled)
            print(name, rows[name], flush=True)
    results["extra_bytes"] = {
        key: rows["scaled"][key] - rows["unscaled"][key] for key in ("peak_bytes", "temp_bytes")
    }
    write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
