"""SmolLM2 in 8 and 4 bits on 8 virtual CPU devices: logits and bytes against one device.

    pip install -e ".[demo]"
    python experiments/scaling/sharded_smollm2.py

The figures go into sharded_smollm2.json. The model is smollm2-135m with its kernels in the row's
codec and its embedding in 8 bits. Ids are 8 rows of 32 tokens, and 8 rows of one token, for which a
CPU multiplies integer digits. All rows start at position 0. A row that is in the file already is
not measured again.
"""

import hashlib
import json
import os
import pathlib

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.compiler import hlo
from jaxmem.io.atomic import write_whole
from jaxmem.models import downloading

CODECS = {"int8": jm.Int(8), "int4 g64": jm.Int(4, group=64)}
MESHES = {
    "fsdp 8": (jm.layouts.fsdp, {"fsdp": 8}),
    "tensor 3": (jm.layouts.tensor, {"tensor": 3}),
    "fsdp 2 x tensor 3": (jm.layouts.fsdp_tensor, {"fsdp": 2, "tensor": 3}),
}
LENGTHS, BATCH, SEED = (32, 1), 8, 0


def measure(model, encoded, ids, expected, layout, axes):
    mesh = jm.mesh(**axes)
    rules = layout(model.config, mesh)
    placed = jm.shard(encoded, jm.shardings(encoded, mesh, rules))
    ids = jax.device_put(ids, NamedSharding(mesh, P(("data", "fsdp"))))
    program = jax.jit(model.apply).lower(placed, ids).compile()
    logits = np.asarray(program(placed, ids))
    sizes = program.memory_analysis()
    module = hlo.read(program.as_text())
    gathers = [op for _, op, _ in module.walk() if op.kind.startswith("all-gather")]
    code_gathers = [op for op in gathers if hlo.dims(op.type)[0][0] in ("s8", "u8")]
    code_stacks = [x for x in jax.tree.leaves(encoded["layers"]) if x.dtype.itemsize == 1]
    bytes_a_device = jm.nbytes((encoded, ids)) / mesh.size
    table = jm.placement(encoded, mesh, rules)
    return {
        "relative_error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "argument_bytes_a_device": sizes.argument_size_in_bytes,
        "total_over_devices": round(bytes_a_device),
        "argument_ratio": round(sizes.argument_size_in_bytes / bytes_a_device, 4),
        "left_whole": [r.path for r in table.rows if r.whole],
        "temp_bytes": sizes.temp_size_in_bytes,
        "largest_gather_of_codes": max((op.nbytes for op in code_gathers), default=0),
        "smallest_stack_of_codes": min(x.size for x in code_stacks),
        "gathers_of_a_stack": sum(  # gathers of the codes or scales of all layers
            kind in ("s8", "u8", "f16") and sides[:1] == [model.config.layers]
            for op in gathers
            for kind, sides in hlo.dims(op.type)
        ),
    }


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    model = jm.models.load("smollm2-135m")
    results = {
        "command": "python experiments/scaling/sharded_smollm2.py",
        "jax": jax.__version__,
        "backend": f"{jax.default_backend()}, {jax.device_count()} virtual devices",
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": SEED,
        "rows": [],
    }
    if path.exists():
        results["rows"] = json.loads(path.read_text())["rows"]
    ids = np.random.default_rng(SEED).integers(0, model.config.vocab, (BATCH, max(LENGTHS)))
    uses = jm.uses(model.apply, model.tensors, ids)
    for codec_name, codec in CODECS.items():
        rules = {".*kernel": codec, "embed/embedding": jm.Int(8)}
        encoded = jm.encode(model.tensors, jm.choose(model.tensors, rules), uses=uses)
        for length in LENGTHS:
            batch = ids[:, :length].astype(np.int32)
            expected = None
            for mesh_name, (layout, axes) in MESHES.items():
                key = {"codec": codec_name, "mesh": mesh_name, "ids": [BATCH, length]}
                if any(key.items() <= row.items() for row in results["rows"]):
                    continue
                if expected is None:
                    expected = np.asarray(jax.jit(model.apply)(encoded, batch))
                row = key | measure(model, encoded, batch, expected, layout, axes)
                print(row, flush=True)
                results["rows"].append(row)
                write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
