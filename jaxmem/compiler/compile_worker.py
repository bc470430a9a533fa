"""Compiles one exported program for a TPU or GPU that this machine may lack, and reports its sizes.

`compile_subprocess` starts this file as a script, because libtpu may abort the process it is in.
The script reads a line of JSON (`platform`, `topology`, `options` of the topology, `donated`
arguments, `compiler_options`) and then the exported program from standard input. It writes one
line of JSON with one of

    sizes     bytes that the program takes on each device; beside it `compiled`, the compiled text
    invalid   what is wrong with the request
    failed    the compiler's message, also if the program needs too much memory

With `sizes` and `failed` comes `program`, the text before compilation. Texts are compressed with
zlib and written in base 64. Nothing of jaxmem is imported, so a start costs only importing jax.
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
    """Bytes of each kind on one device; see `memory_analysis.Memory`.

    `highest` is the compiler's own peak. On CPU it leaves out temporaries. On a TPU it counts
    arguments in host memory, so they are subtracted.
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
    """A program's text, compressed to about a twentieth."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


def main() -> None:
    """Answers the request on standard input."""
    request = json.loads(sys.stdin.buffer.readline())
    exported = jax.export.deserialize(bytearray(sys.stdin.buffer.read()))
    print(json.dumps(_answer(request, exported)), flush=True)


def _answer(request: dict, exported: jax.export.Exported) -> dict:
    """One of the answers that the module's docstring lists."""
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


def _lower(
    exported: jax.export.Exported, devices: list[jax.Device], donated: list[int]
) -> jax.stages.Lowered:
    """The program as `jit` would lower it: arguments that nothing reads are left out.

    `donated` are the positions of donated arguments.
    """
    used = exported.module_kept_var_idx
    shardings = _shardings(exported, devices)
    arguments = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[i])
        for i, a in enumerate(exported.in_avals)
        if i in used
    ]

    def program(*args):
        value_of = dict(zip(used, args))
        avals = enumerate(exported.in_avals)
        return exported.call(
            *(value_of[i] if i in value_of else jnp.zeros(a.shape, a.dtype) for i, a in avals)
        )

    donate = [n for n, i in enumerate(used) if i in donated]
    place = None if arguments else SingleDeviceSharding(devices[0])
    return jax.jit(program, donate_argnums=donate, out_shardings=place).lower(*arguments)


def _shardings(exported: jax.export.Exported, devices: list[jax.Device]) -> list:
    """A sharding over `devices` for each argument; replicated where the program names none."""
    if exported.nr_devices == 1:
        kinds = [
            "pinned_host" if a.memory_space == jax.memory.Space.Host else None
            for a in exported.in_avals
        ]
        return [SingleDeviceSharding(devices[0], memory_kind=kind) for kind in kinds]
    abstract = exported.in_shardings_jax(None)
    mesh = next((s.mesh for s in abstract if s is not None), None)
    if mesh is None:
        mesh = Mesh(np.array(devices), ("devices",))
    elif len({getattr(d, "slice_index", 0) for d in devices}) > 1:
        # Several slices: the mesh's first axis, which is the slowest, runs over the slices.
        grid = np.array(sorted(devices, key=lambda d: (d.slice_index, d.id)))
        grid = grid.reshape(mesh.axis_sizes)
        mesh = Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)
    else:
        mesh = jax.make_mesh(
            mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types, devices=devices
        )
    replicated = NamedSharding(mesh, PartitionSpec())
    return [s or replicated for s in exported.in_shardings_jax(mesh)]


if __name__ == "__main__":
    main()
