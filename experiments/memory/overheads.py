"""Seconds of import, tracing and encoding that are jaxmem's own: writes overheads.json.

    pip install -e ".[demo]"
    python experiments/memory/overheads.py

Each figure is the median of five runs. Tracing is of SmolLM2, encoding of llama-8b by its shapes.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxmem as jm

REPEATS = 5
SCRIPT = """
import time, jax, flax, flax.linen, flax.nnx
start = time.perf_counter()
import jaxmem.names
print(time.perf_counter() - start)
"""


def import_seconds() -> list[float]:
    """Seconds to import all of jaxmem in new processes that have imported jax and flax."""
    run = lambda: subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    return [float(run().stdout) for _ in range(REPEATS)]


def run_seconds(fn: Callable, prepare: Callable = lambda: None) -> list[float]:
    """Seconds of each run of `fn`."""
    seconds = []
    for _ in range(REPEATS):
        prepare()
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return seconds


def tracing_seconds() -> dict:
    """Seconds to trace SmolLM2 (30 layers, scanned), dense and lifted on int4 weights."""
    model = jm.models.load("smollm2-135m")
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        model.tensors,
        is_leaf=lambda x: hasattr(x, "shape"),
    )
    plan = jm.choose(shapes, {".*/(kernel|embedding)": jm.Int(4, group=64)})
    uses = jm.uses(model.apply, shapes, ids)
    encoded = jm.encode(shapes, plan, uses=uses)
    trace = lambda params: jax.jit(model.apply).trace(params, ids)
    dense = run_seconds(lambda: trace(shapes), jax.clear_caches)
    lifted = run_seconds(lambda: trace(encoded), jax.clear_caches)
    return {
        "dense_seconds": statistics.median(dense),
        "lifted_seconds": statistics.median(lifted),
        "overhead_seconds": statistics.median(lifted) - statistics.median(dense),
    }


def encoding_seconds() -> list[float]:
    """Seconds to encode llama-8b by shapes alone."""
    model = jm.models.load("llama-8b")
    plan = jm.choose(model.tensors, {".*/(kernel|embedding)": jm.Int(4, group=128)})
    run = lambda: jax.eval_shape(lambda p: jm.encode(p, plan), model.tensors)
    return run_seconds(run, jax.clear_caches)


def main() -> None:
    results = {
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "backend": jax.default_backend(),
        "runs": REPEATS,
        "import_seconds_beyond_jax_and_flax": statistics.median(import_seconds()),
        "tracing_smollm2": tracing_seconds(),
        "encode_llama_8b_by_shapes_seconds": statistics.median(encoding_seconds()),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
