"""Bytes a device from one chip to 256, by the TPU's compiler: writes scaling.json.

    pip install -e ".[demo,tpu]"
    python experiments/scaling/scaling.py [--only NAME]

llama-8b trains in bfloat16 with f32 Adam states and full remat, on one row of 2,048 tokens for each
device of `fsdp`; llama-70b serves in 4 bits, 8 rows of 4,096 tokens. Nothing is run. Each row is
compiled at the chip's own memory, with activations constrained at block boundaries, as our models
do. It is compiled again on a mesh whose axes have names that our models do not know, so that
nothing is constrained. If a program does not fit, `needed` is the compiler's estimate. A row that
is in the file already is not compiled again.
"""

import argparse
import json
import pathlib

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm

TRAIN_LENGTH, CACHE_LENGTH = 2048, 4096
TRAIN = {
    "tpu v5e:1x1": {},
    "tpu v5e:2x2": dict(fsdp=4),
    "tpu v5e:2x4": dict(fsdp=8),
    "tpu v5e:4x8": dict(fsdp=32),
    "tpu v5e:8x8": dict(fsdp=64),
    "tpu v5e:16x16": dict(fsdp=64, tensor=4),
}
SERVE = {
    "tpu v6e:1x1": {},
    "tpu v5e:2x2": dict(tensor=4),
    "tpu v5e:2x4": dict(tensor=8),
    "tpu v5e:4x4": dict(data=2, tensor=8),
}
UNKNOWN_NAMES = {"fsdp": "rows", "data": "rows"}  # axis names that our models do not know


def on_mesh(device, axes, layout, config, constrained):
    """(a mesh, the layout's rules on it, the spec of a batch's rows)."""
    mesh = jm.mesh(**axes, device=device)
    rules, rows = layout(config, mesh), ("data", "fsdp")
    if not constrained:
        names = tuple(map(renamed, axes))
        types = (AxisType.Auto,) * len(names)
        mesh = AbstractMesh(tuple(axes.values()), names, axis_types=types)
        rules = {at: P(*(renamed(e) for e in spec)) for at, spec in rules.items()}
        rows = tuple(name for name in names if name == "rows")
    return mesh, rules, P(rows or None)


def renamed(entry):
    """An entry of a spec with its axes renamed to names that models do not know."""
    rename = lambda name: UNKNOWN_NAMES.get(name, name)
    return tuple(map(rename, entry)) if isinstance(entry, tuple) else rename(entry)


def train(device: str, axes: dict, constrained: bool):
    """(step, its arguments) of llama-8b on a mesh."""
    program = jm.build(jm.Recipe("llama-8b", "cpu", "train", axes.get("fsdp", 1), TRAIN_LENGTH))
    if not axes:
        return program.step, program.arguments
    state, ids = program.arguments
    config = jm.models.load("llama-8b").config
    mesh, rules, rows = on_mesh(device, axes, jm.layouts.fsdp_tensor, config, constrained)
    params = state["params"]
    shardings = jm.shardings(params, mesh, rules)
    state = jm.shard(state, jm.state_shardings(state, params, shardings))
    ids_sharding = NamedSharding(mesh, rows)
    return program.step, (state, jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=ids_sharding))


def serve(device: str, axes: dict, constrained: bool):
    """(step, its arguments) of llama-70b in 4 bits on a mesh."""
    recipe = jm.Recipe("llama-70b", "cpu", "serve", 8, CACHE_LENGTH, encoding=jm.Int(4))
    program = jm.build(recipe)
    if not axes:
        return program.step, program.arguments
    cache, params, ids, position = program.arguments
    config = jm.models.load("llama-70b").config
    mesh, rules, rows = on_mesh(device, axes, jm.layouts.tensor, config, constrained)
    params = jm.shard(params, jm.shardings(params, mesh, rules))
    cache_spec = P(None, *rows, "tensor")
    cache = jm.shard(cache, jm.shardings(cache, mesh, {".*": cache_spec}))
    ids_sharding = NamedSharding(mesh, rows)
    ids = jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=ids_sharding)
    return program.step, (cache, params, ids, position)


def measure(build, device: str, axes: dict, constrained: bool) -> dict:
    step, arguments = build(device, axes, constrained)
    memory = jm.memory(step, *arguments, device=device)
    sizes = ("arguments", "temp", "peak", "needed", "limit", "fits", "exact", "collectives")
    return {name: getattr(memory, name) for name in sizes} | {"versions": memory.versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    results |= {
        "command": "python experiments/scaling/scaling.py",
        "jax": jax.__version__,
        "seed": None,
    }
    results |= {"backend": "tpu, compiled, not run", "models": "llama-8b, llama-70b: shapes"}
    write = lambda: path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for build, meshes in ((train, TRAIN), (serve, SERVE)):
        for device, axes in meshes.items():
            for constrained in (True, False):
                mesh_name = " x ".join(f"{k} {v}" for k, v in axes.items()) or "one chip"
                constraint = "constrained" if constrained else "not constrained"
                name = f"{build.__name__}, {device}, {mesh_name}, {constraint}"
                if (
                    name in results["rows"]
                    or args.only not in name
                    or (not axes and not constrained)
                ):
                    continue
                results["rows"][name] = measure(build, device, axes, constrained)
                write()
                print(name, f"{results['rows'][name]['peak'] / 2**30:.2f} GiB", flush=True)
    write()


if __name__ == "__main__":
    main()
