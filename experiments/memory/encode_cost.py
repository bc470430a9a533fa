"""What encoding, saving and loading take beside the weight: writes encode_cost.json.

    python experiments/memory/encode_cost.py

The peak resident memory of a process (Linux, VmHWM) that encodes one weight of 128 MiB, in units of
the weight, with the weight itself. Each codec has a process of its own. Then how long it takes to
encode 40 small weights of 40 shapes, which is a program for each.
"""

import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

SHAPE = (4096, 8192)
SHAPES = 40
SEED = 0
CODECS = {
    "Int(8)": jm.Int(8),
    "Int(4, group=32)": jm.Int(4, group=32),
    "Float('e4m3')": jm.Float("e4m3"),
    "Float('nvfp4')": jm.Float("nvfp4"),
    "Codebook('nf4', group=64)": jm.Codebook("nf4", group=64),
    "KMeans(2)": jm.KMeans(2),
    "Affine(4, group=32)": jm.Affine(4, group=32),
    "Planes()": jm.Planes(),
    "Search(Int(4, group=32))": jm.Search(jm.Int(4, group=32)),
    "Bitmask(0.5)": jm.Bitmask(0.5),
    "NM(2, 4)": jm.NM(2, 4),
    "Csr(0.1)": jm.Csr(0.1),
    "Coo(0.01)": jm.Coo(0.01),
    "Blocks(0.5)": jm.Blocks(0.5),
    "Chain((NM(2, 4), Int(4)))": jm.Chain((jm.NM(2, 4), jm.Int(4))),
}


def weight(*shape: int) -> np.ndarray:
    """Random numbers where JAX needs no copy of them, drawn in place."""
    memory = np.empty(4 * math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    w = memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)
    np.random.default_rng(SEED).standard_normal(dtype=np.float32, out=w)
    return w


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def grown(prepare: Callable[[int], object], run: Callable[[object], object]) -> list[float]:
    """The peak and the result's bytes, in units of the weight.

    A smaller weight comes first, so that what JAX and its compiler take is not counted.
    """
    jax.block_until_ready(run(prepare(SHAPE[0] // 16)))
    before, unit = peak(), 4 * SHAPE[0] * SHAPE[1]
    result = jax.block_until_ready(run(prepare(SHAPE[0])))
    return [(peak() - before) / unit, jm.nbytes(result) / unit if result is not None else 0.0]


def measure(name: str) -> list[float]:
    """What one process measures."""
    encoded = lambda codec: lambda w: jm.encode({"w": w}, {"w": codec})
    on_device = lambda rows: jax.device_put(weight(rows, SHAPE[1]), may_alias=True)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.jm"
        if name == "save":
            return grown(on_device, lambda w: jm.save(path, {"w": w}))
        if name == "load":
            subprocess.run([sys.executable, __file__, "write", folder], check=True)
            return grown(lambda rows: f"{folder}/{rows}.jm", jm.load)
    if name.startswith("NumPy "):
        return grown(
            lambda rows: weight(rows, SHAPE[1]), encoded(CODECS[name.removeprefix("NumPy ")])
        )
    return grown(on_device, encoded(CODECS[name]))


def seconds_of_shapes(codec: object) -> float:
    """Seconds to encode `SHAPES` weights, each of another shape."""
    rng = np.random.default_rng(SEED)
    draw = lambda i: jnp.asarray(rng.standard_normal((64 + i, 96 + i), np.float32))
    params = {f"w{i}": draw(i) for i in range(SHAPES)}
    start = time.perf_counter()
    jax.block_until_ready(jm.encode(params, dict.fromkeys(params, codec)))
    return time.perf_counter() - start


def main() -> None:
    rows = {}
    for name in [*CODECS, "NumPy Int(8)", "NumPy Bitmask(0.5)", "save", "load"]:
        command = [sys.executable, __file__, name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name] = dict(zip(("peak", "result"), json.loads(out.splitlines()[-1])))
        print(name, rows[name], flush=True)
    result = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "shape": SHAPE,
        "leaves": rows,
        "shapes": {"count": SHAPES, "seconds": seconds_of_shapes(jm.Int(4))},
    }
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def write(folder: str) -> None:
    """Writes what `load` reads, in a process of its own: writing has a peak too."""
    for rows in (SHAPE[0] // 16, SHAPE[0]):
        jm.save(f"{folder}/{rows}.jm", {"w": jnp.asarray(weight(rows, SHAPE[1]))})


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2])
    elif len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
