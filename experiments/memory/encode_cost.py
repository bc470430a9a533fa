"""What encoding, saving and loading take beside the weight: writes encode_cost.json.

    python experiments/memory/encode_cost.py

The peak resident memory of a process (Linux, VmHWM) that encodes one weight of 64 MiB, in units of
the weight, with the weight and its moments. Each codec has a process of its own. Solvers that take
E[x x^T] (inputs, inputs) also have its size in f32. A run that was stopped goes on with the rows
that the file lacks: remove it to measure all of them again. Then how long it takes to encode 40
small weights of 40 shapes.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.solvers import pruning_scores

SHAPE = {"float32": (1024, 16384), "bfloat16": (2048, 16384)}  # inputs, outputs: 64 MiB
SHAPES = 40
LAYERS = 8
SEED = 0


def own_score(matrix: jax.Array, stats: jm.Moments | None) -> jax.Array:
    """A score that depends on all rows: the share of a weight in its column."""
    size = jnp.abs(matrix)
    return size / size.sum(0)[None]


ONE = {
    "Int(8)": jm.Int(8),
    "Int(4, group=32)": jm.Int(4, group=32),
    "Int(3, group=64, symmetric=False)": jm.Int(3, group=64, symmetric=False),
    "Cast('bfloat16')": jm.Cast("bfloat16"),
    "Cast('float8_e4m3fn')": jm.Cast("float8_e4m3fn"),
    "Float('e4m3')": jm.Float("e4m3"),
    "Float('mxfp4')": jm.Float("mxfp4"),
    "Float('nvfp4')": jm.Float("nvfp4"),
    "Codebook('nf4', group=64)": jm.Codebook("nf4", group=64),
    "KMeans(2)": jm.KMeans(2),
    "KMeans(4, group=256)": jm.KMeans(4, group=256),
    "Affine(4, group=32)": jm.Affine(4, group=32),
    "Planes()": jm.Planes(),
    "Planes(group=64)": jm.Planes(group=64),
    "Dynamic(Int(8))": jm.Dynamic(jm.Int(8)),
    "Fake(Int(4), learn=True)": jm.Fake(jm.Int(4), learn=True),
    "Bitmask(0.5)": jm.Bitmask(0.5),
    "NM(2, 4)": jm.NM(2, 4),
    "Csr(0.1)": jm.Csr(0.1),
    "Coo(0.01)": jm.Coo(0.01),
    "Blocks(0.5)": jm.Blocks(0.5),
    "Inputs(0.5)": jm.Inputs(0.5),
    "Outputs(0.5)": jm.Outputs(0.5),
    "Chain((NM(2, 4), Int(4)))": jm.Chain((jm.NM(2, 4), jm.Int(4))),
    "Chain((Blocks(0.5), Int(8)))": jm.Chain((jm.Blocks(0.5), jm.Int(8))),
    "Sum((Int(4), Int(4)))": jm.Sum((jm.Int(4), jm.Int(4))),
    "Sum((Coo(0.005), Int(3, group=64)))": jm.Sum((jm.Coo(0.005), jm.Int(3, group=64))),
    "DoubleQuant(Codebook('nf4', group=64))": jm.DoubleQuant(jm.Codebook("nf4", group=64)),
    "Search(Int(4, group=32))": jm.Search(jm.Int(4, group=32)),
    "HQQ(Int(4, group=64))": jm.HQQ(jm.Int(4, group=64)),
    "Permute(NM(2, 4))": jm.Permute(jm.NM(2, 4)),
    "Prune(Bitmask(0.5), magnitude)": jm.Prune(jm.Bitmask(0.5), pruning_scores.magnitude),
    "Prune(Bitmask(0.5), your own score)": jm.Prune(jm.Bitmask(0.5), own_score),
    "LowRank(32)": jm.LowRank(32),
    "Sum((Int(4), LowRank(32)))": jm.Sum((jm.Int(4), jm.LowRank(32))),
}
DIAGONAL = {  # codecs that are given E[x^2] of the inputs
    "Smooth(Int(4, group=64))": jm.Smooth(jm.Int(4, group=64)),
    "Wanda(NM(2, 4))": jm.Wanda(jm.NM(2, 4)),
    "RIA(NM(2, 4))": jm.RIA(jm.NM(2, 4)),
    "QERA(Int(3, group=64), 32)": jm.QERA(jm.Int(3, group=64), 32),
}
GRAM = {  # codecs that are given E[x x^T]
    "GPTQ(Int(4, group=64))": jm.GPTQ(jm.Int(4, group=64)),
    "GPTQ(Int(4, group=64), turns=2)": jm.GPTQ(jm.Int(4, group=64), turns=2),
    "GPTQ(KMeans(3))": jm.GPTQ(jm.KMeans(3)),
    "SparseGPT(NM(2, 4))": jm.SparseGPT(jm.NM(2, 4)),
    "Refit(NM(2, 4))": jm.Refit(jm.NM(2, 4)),
}
STACKS = {  # codecs of a stack of 8 layers
    "LowRank(4), 8 layers": jm.LowRank(4),
    "Shared(2), 8 layers": jm.Shared(2),
    "Basis(4, groups=2), 8 layers": jm.Basis(4, groups=2),
}
CODECS = ONE | DIAGONAL | GRAM | STACKS
NUMPY = ["Int(8)", "Float('nvfp4')"]
UNALIGNED = "NumPy, not at a multiple of 64 bytes: "


def weight(*shape: int, dtype: str = "float32", shift: int = 0) -> np.ndarray:
    """Random numbers, drawn in place: where JAX needs no copy of them, or `shift` bytes behind."""
    size = jnp.dtype(dtype).itemsize
    memory = np.empty(size * math.prod(shape) + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    w = memory[start : start + size * math.prod(shape)].view(jnp.dtype(dtype)).reshape(shape)
    rng = np.random.default_rng(SEED)
    for row in w.reshape(shape[0], -1):
        row[:] = rng.standard_normal(row.size, np.float32)
    return w


def moments(k: int, kind: str, *stack: int) -> jm.Moments:
    """The moments of 256 random inputs of k numbers, the same for all layers of a stack."""
    x = np.random.default_rng(SEED).standard_normal((256, k), np.float32)
    second = x.T @ x / 256 if kind == "gram" else (x * x).mean(0)
    one = (second, x.mean(0), abs(x).max(0), np.float32(256))
    return jm.Moments(*(jnp.broadcast_to(a, (*stack, *np.shape(a))) for a in one))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def grown(prepare: Callable[[int], Any], run: Callable[[Any], Any], dtype: str) -> dict[str, float]:
    """The peak, with what `prepare` makes, and the result's bytes, in units of the weight.

    A smaller weight comes first, so that what JAX and its compiler take is not counted.
    """
    k, n = SHAPE[dtype]
    jax.block_until_ready(run(prepare(k // 16)))
    before, unit = peak(), jnp.dtype(dtype).itemsize * k * n
    result = jax.block_until_ready(run(prepare(k)))
    size = 0 if result is None else jm.nbytes(result)
    return {"peak": (peak() - before) / unit, "result": size / unit}


def measure(name: str, dtype: str) -> dict[str, float]:
    """What one process measures."""
    kind, k, n = name.removeprefix(UNALIGNED).removeprefix("NumPy "), *SHAPE[dtype]
    codec = CODECS.get(kind)
    moments_kind = "diag" if kind in DIAGONAL else "gram"
    stats = lambda k: {"w": moments(k, moments_kind)} if kind in DIAGONAL | GRAM else None
    encoded = lambda args: jm.encode({"w": args[0]}, {"w": codec}, stats=args[1])
    shift = 16 if name.startswith(UNALIGNED) else 0
    drawn = lambda k: weight(k, n, dtype=dtype, shift=shift)
    layers = lambda w: w.reshape(LAYERS, -1, n) if kind in STACKS else w
    on_device = lambda k: jax.device_put(layers(drawn(k)), may_alias=True)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.jm"
        if name == "save":
            return grown(on_device, lambda w: jm.save(path, {"w": w}), dtype)
        if name == "load":
            subprocess.run([sys.executable, __file__, "write", folder], check=True)
            return grown(lambda k: f"{folder}/{k}.jm", jm.load, dtype)
    put = drawn if name != kind else on_device
    row = grown(lambda k: (put(k), stats(k)), encoded, dtype)
    if kind in GRAM:
        row["gram"] = 4 * k * k / (jnp.dtype(dtype).itemsize * k * n)
    return row


def seconds_of_shapes(codec: object) -> float:
    """Seconds to encode `SHAPES` weights, each of another shape."""
    rng = np.random.default_rng(SEED)
    draw = lambda i: jnp.asarray(rng.standard_normal((64 + i, 96 + i), np.float32))
    params = {f"w{i}": draw(i) for i in range(SHAPES)}
    start = time.perf_counter()
    jax.block_until_ready(jm.encode(params, dict.fromkeys(params, codec)))
    return time.perf_counter() - start


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    result = json.loads(path.read_text()) if path.exists() else {}
    about = {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    about |= {"shape": {dtype: list(shape) for dtype, shape in SHAPE.items()}}
    if {name: result.get(name) for name in about} != about:
        result = {**about, "leaves": []}
    measured = {(row["what"], row["dtype"]) for row in result["leaves"]}
    names = [*CODECS, *(kind + name for kind in ("NumPy ", UNALIGNED) for name in NUMPY)]
    names += ["save", "load"]
    of_bf16 = [*("NumPy " + name for name in NUMPY), *CODECS]
    programs = [(name, "float32") for name in names] + [(name, "bfloat16") for name in of_bf16]
    for name, dtype in programs:
        if (name, dtype) in measured:
            continue
        command = [sys.executable, __file__, name, dtype]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = {"what": name, "dtype": dtype, **json.loads(out.splitlines()[-1])}
        result["leaves"].append(row)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(row, flush=True)
    if "shapes" not in result:
        result["shapes"] = {"count": SHAPES, "seconds": seconds_of_shapes(jm.Int(4))}
    path.write_text(json.dumps(result, indent=1) + "\n")


def write(folder: str) -> None:
    """Writes what `load` reads, in a process of its own: writing has a peak too."""
    k, n = SHAPE["float32"]
    for inputs in (k // 16, k):
        jm.save(f"{folder}/{inputs}.jm", {"w": jnp.asarray(weight(inputs, n))})


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2])
    elif len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
