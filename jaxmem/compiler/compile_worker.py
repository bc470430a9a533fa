"""Compiles one exported program for a TPU or GPU that is not here, and says what it takes.

A process of its own, started by `compiling` as a script, because libtpu may abort the process it
is in. Reads from standard input a line of JSON (`platform`, `topology`, its `options`, `donated`
arguments, `compiler_options`) and then the exported program; writes one line of JSON with one of

    sizes     what the program takes, in bytes a device, and `compiled`, its text
    invalid   what is wrong with the request
    failed    the compiler's message, out of memory included

and beside `sizes` and `failed` the `program`, its text before it was compiled. Texts are zlib in
base 64. Imports nothing of jaxmem, so that a start costs what importing jax costs.
"""

import base64
import json
import sys
import zlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding


def sizes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device; `highest` is the compiler's own peak, which leaves out temp on CPU.

    A TPU's counts arguments that lie on the host, which are taken off here.
    """
    m = compiled.memory_analysis()
    host = m.host_argument_size_in_bytes + m.host_output_size_in_bytes + m.host_temp_size_in_bytes
    return {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "temp": m.temp_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "host": host - m.host_alias_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
        "highest": m.peak_memory_in_bytes - m.host_argument_size_in_bytes,
    }


def packed(text: str) -> str:
    """A program's text in a twentieth of its size."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    exported = jax.export.deserialize(bytearray(sys.stdin.buffer.read()))
    print(json.dumps(_answer(request, exported)), flush=True)


def _answer(request: dict, exported: jax.export.Exported) -> dict:
    try:
        devices = topologies.get_topology_desc(
            platform=request["platform"], topology_name=request["topology"], **request["options"]
        ).devices
    except jax.errors.JaxRuntimeError as e:
        return {"invalid": str(e)}
    if exported.nr_devices not in (1, len(devices)):
        return {"invalid": f"a mesh of {exported.nr_devices} devices on {len(devices)}"}
    lowered = _lower(exported, devices, request["donated"])
    program = packed(lowered.as_text("hlo"))
    try:
        compiled = lowered.compile(compiler_options=request["compiler_options"])
    except jax.errors.JaxRuntimeError as e:
        return {"failed": str(e), "program": program}
    return {"sizes": sizes(compiled), "compiled": packed(compiled.as_text()), "program": program}


def _lower(exported: jax.export.Exported, devices, donated: list[int]) -> jax.stages.Lowered:
    """The program as `jit` itself would lower it: arguments that nothing reads are not taken."""
    kept = exported.module_kept_var_idx
    places = _shardings(exported, devices)
    given = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=places[i])
        for i, a in enumerate(exported.in_avals)
        if i in kept
    ]

    def program(*args):
        read = dict(zip(kept, args))
        avals = enumerate(exported.in_avals)
        return exported.call(
            *(read[i] if i in read else jnp.zeros(a.shape, a.dtype) for i, a in avals)
        )

    donate = [n for n, i in enumerate(kept) if i in donated]
    where = None if given else SingleDeviceSharding(devices[0])
    return jax.jit(program, donate_argnums=donate, out_shardings=where).lower(*given)


def _shardings(exported: jax.export.Exported, devices) -> list:
    if exported.nr_devices == 1:
        kinds = [
            "pinned_host" if a.memory_space == jax.memory.Space.Host else None
            for a in exported.in_avals
        ]
        return [SingleDeviceSharding(devices[0], memory_kind=kind) for kind in kinds]
    asked = exported.in_shardings_jax(None)
    mesh = next((s.mesh for s in asked if s is not None), None)
    if mesh is None:
        mesh = Mesh(np.array(devices), ("devices",))
    elif len({getattr(d, "slice_index", 0) for d in devices}) > 1:  # the first axis is the slowest
        grid = np.array(sorted(devices, key=lambda d: (d.slice_index, d.id)))
        grid = grid.reshape(mesh.axis_sizes)
        mesh = Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)
    else:
        mesh = jax.make_mesh(
            mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types, devices=devices
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    return [s or everywhere for s in exported.in_shardings_jax(mesh)]


if __name__ == "__main__":
    main()
