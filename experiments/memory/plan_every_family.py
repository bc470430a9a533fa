"""The bytes of one step's arguments for a tiny model of every family, on one device and on four.

    export XLA_FLAGS=--xla_force_host_platform_device_count=4
    python experiments/memory/plan_every_family.py

The configurations are those of tests/reference/decoders. Each step of `plan`'s tasks is traced, and
plan_every_family.json has the bytes of its arguments on a device: [of one, of four].
"""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np

import jaxmem as jm
from jaxmem.architectures import decoder
from jaxmem.models import Model

REFERENCES = pathlib.Path(__file__).parents[2] / "tests/reference/decoders"
MESHES = {"serve": {"data": 2, "tensor": 2}, "lora": {"fsdp": 4}, "train": {"fsdp": 4}}
JSON = pathlib.Path(__file__).with_suffix(".json")


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    """The bytes of an argument on one device."""
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def step_bytes(model: Model, task: str) -> list[int]:
    """The bytes of the arguments of a step, traced on one device and on four."""
    encoding = None if task == "train" else jm.Int(4)
    one = jm.Recipe(
        "tiny", "cpu", task, batch=4, seq=8, chunk=4, rank=2, prompt=4, encoding=encoding
    )
    sizes = []
    for recipe in (one, dataclasses.replace(one, mesh=MESHES[task])):
        built = jm.build(recipe, model=model)
        jax.eval_shape(built.step, *built.arguments)
        sizes.append(sum(map(shard_bytes, jax.tree.leaves(built.arguments))))
    return sizes


def main() -> None:
    families = {}
    for path in sorted(REFERENCES.glob("*.npz")):
        config = decoder.Config.from_hf(json.loads(str(np.load(path)["config"])))
        model = Model(config, decoder.module(config), None, path.stem)
        families[path.stem] = {task: step_bytes(model, task) for task in MESHES}
        jax.clear_caches()
        print(path.stem, families[path.stem], flush=True)
    setting = {"jax": jax.__version__, "backend": jax.default_backend(), "tasks": MESHES}
    JSON.write_text(json.dumps({"setting": setting, "families": families}, indent=1) + "\n")


if __name__ == "__main__":
    main()
