"""A step to serve with keys and values in host memory, by a TPU compiler: cache_on_host.json.

    pip install -e ".[tpu]"
    python experiments/memory/cache_on_host.py [ROWS]

4 layers of llama-8b, weights in 8 bits, 16 rows of 2,048 tokens. The compiler says the bytes of the
device (`peak`, `temp`) and of the host; nothing is run. `cache_bytes` are those of all keys and
values. A row that is in the file already is not compiled again; ROWS is the most rows of one run.
"""

import dataclasses
import json
import pathlib
import sys

import jax

import jaxmem as jm
from jaxmem.io.atomic import write_whole

LAYERS, BATCH, SEQ = 4, 16, 2048
PAGES = {"pages": BATCH * SEQ // 64}
KINDS = {  # name: (options of the recipe, what is on the host)
    "cache": ({}, ("cache/k", "cache/v")),
    "pages": (PAGES, ("cache/stores/0/keys", "cache/stores/0/values")),
    "pages, 4 bits": (
        PAGES | {"cache_bits": 4},
        ("cache/stores/0/keys", "cache/stores/0/values"),
    ),
    "cache, 4 bits": ({"cache_bits": 4}, ("cache/keys/codes", "cache/values/codes")),
}


def few_layers(name: str) -> jm.models.Model:
    """A model's first layers, as shapes."""
    model = jm.models.load(name)
    first = lambda x: jax.ShapeDtypeStruct((LAYERS, *x.shape[1:]), x.dtype)
    params = model.params | {"layers": jax.tree.map(first, model.params["layers"])}
    config = dataclasses.replace(model.config, layers=LAYERS)
    return dataclasses.replace(model, config=config, tensors=params)


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    results |= {"jax": jax.__version__, "backend": "a TPU target, compiled and not run"}
    results |= {"seed": None, "layers": LAYERS, "batch": BATCH, "seq": SEQ}
    model, left = few_layers("llama-8b"), int(sys.argv[1]) if sys.argv[1:] else None
    cases = [
        (device, kind, program, on_host)
        for program in ("step", "prompt")
        for device in ("tpu v5e:1x1", "tpu v6e:1x1")
        for kind in KINDS
        for on_host in (True, False)
    ]
    names = {", ".join((d, k, p, "host" if h else "device")): (d, k, p, h) for d, k, p, h in cases}
    new = [name for name in names if name not in results["rows"]]
    for name in new[:left]:
        device, kind, program, on_host = names[name]
        options, host = KINDS[kind]
        recipe = jm.Recipe("llama-8b", device, "serve", BATCH, SEQ, encoding=jm.Int(8), **options)
        recipe = dataclasses.replace(recipe, host=host if on_host else ())
        built = jm.build(recipe, model=model)
        fn, args = built.programs[program]
        try:
            m = jm.memory(fn, *args, device=device)
            row = {"peak_bytes": m.peak, "temp_bytes": m.temp, "host_bytes": m.host}
        except jm.CompileError as error:
            row = {"refused": str(error)[:200]}
        row |= {"cache_bytes": jm.nbytes(built.parts["KV cache"])}
        results["rows"][name] = row
        print(name, row, flush=True)
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
