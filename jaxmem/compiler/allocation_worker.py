"""Runs one exported program under the allocation counter, and reports what each call allocated.

`buffer_allocations` starts this file as a script, with the counter preloaded. The script reads a
line of JSON (`arrays`: dtype and shape of each argument; `donated`: positions; `calls`; `least`:
bytes; `program`: bytes; `kernels`: whether the program calls jaxmem's library), then the program
and the bytes of the arguments from standard input. It writes one line of JSON:

    counts      for each of `calls` runs of the calls: allocations, large ones, bytes of these
    in_place    of each donated argument, whether a result has the address that it had
"""

import ctypes
import json
import math
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

_WARM = 3  # calls that are not counted: compiling, and what the runtime allocates once
_COPY = jax.jit(jnp.copy)


def main() -> None:
    """Answers the request on standard input."""
    stdin = sys.stdin.buffer
    request = json.loads(stdin.readline())
    if request["kernels"]:
        from jaxmem.cpu_kernels.library import is_native

        is_native()
    exported = jax.export.deserialize(bytearray(stdin.read(request["program"])))
    arguments = []
    for dtype, shape in request["arrays"]:
        dtype = jnp.dtype(dtype)  # noqa: PLW2901
        data = stdin.read(math.prod(shape) * dtype.itemsize)
        arguments.append(jnp.asarray(np.frombuffer(data, dtype).reshape(shape)))
    run = jax.jit(exported.call, donate_argnums=tuple(request["donated"]))
    print(json.dumps(_counted(run, arguments, request)), flush=True)


def _counted(run: jax.stages.Wrapped, arguments: list, request: dict) -> dict:
    """The answer: the counts of each call, and which donated arguments were written in place."""
    counter, donated, calls = ctypes.CDLL(None), request["donated"], request["calls"]
    counter.jaxmem_count.argtypes = [ctypes.c_int, ctypes.c_size_t]
    out = (ctypes.c_long * 3)()
    # Each call takes donated arguments of its own, which are made before anything is counted.
    rounds = [
        [_COPY(x) if i in donated else x for i, x in enumerate(arguments)]
        for _ in range(_WARM + calls)
    ]
    places = [[round_[i].unsafe_buffer_pointer() for i in donated] for round_ in rounds]
    jax.block_until_ready(rounds)
    counts, in_place = [], [True] * len(donated)
    for n, args in enumerate(rounds):
        counter.jaxmem_count(1, request["least"])
        results = jax.block_until_ready(run(*args))
        counter.jaxmem_count(0, 0)
        counter.jaxmem_counted(out)
        if n >= _WARM:
            counts.append(list(out))
        found = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(results)}
        in_place = [flag and place in found for flag, place in zip(in_place, places[n])]
        args.clear()
        del results
    return {"counts": counts, "in_place": in_place}


if __name__ == "__main__":
    main()
