"""Seconds that jaxmem itself takes: import, tracing, encoding 8B by shapes. Writes overheads.json.

pip install -e ".[demo]"
python experiments/memory/overheads.py
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

RUNS = 5
IMPORT = """
import time, jax, flax, flax.linen, flax.nnx
start = time.perf_counter()
import jaxmem
print(time.perf_counter() - start)
"""


def importing() -> list[float]:
    """Seconds that `import jaxmem` takes in new processes that have imported jax and flax."""
    run = lambda: subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True)
    return [float(run().stdout) for _ in range(RUNS)]


def timed(fn: Callable, prepare: Callable = lambda: None) -> list[float]:
    """Seconds of each run of `fn`."""
    seconds = []
    for _ in range(RUNS):
        prepare()
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return seconds


def tracing() -> dict:
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
    dense = timed(lambda: trace(shapes), jax.clear_caches)
    lifted = timed(lambda: trace(encoded), jax.clear_caches)
    return {
        "dense_seconds": statistics.median(dense),
        "lifted_seconds": statistics.median(lifted),
        "overhead_seconds": statistics.median(lifted) - statistics.median(dense),
    }


def shapes_of_8b() -> list[float]:
    """Seconds to encode llama-8b by shapes alone."""
    model = jm.models.load("llama-8b")
    plan = jm.choose(model.tensors, {".*/(kernel|embedding)": jm.Int(4, group=128)})
    run = lambda: jax.eval_shape(lambda p: jm.encode(p, plan), model.tensors)
    return timed(run, jax.clear_caches)


def main() -> None:
    results = {
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "backend": jax.default_backend(),
        "runs": RUNS,
        "import_seconds_beyond_jax_and_flax": statistics.median(importing()),
        "tracing_smollm2": tracing(),
        "encode_llama_8b_by_shapes_seconds": statistics.median(shapes_of_8b()),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
