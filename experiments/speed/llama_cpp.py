"""Tokens a second of SmolLM2-135M on a CPU: llama.cpp and ours, from the same GGUF files.

    pip install -e ".[demo]"
    npm install --prefix FOLDER --ignore-scripts node-llama-cpp@3
    python experiments/speed/llama_cpp.py --clients FOLDER [--rounds 9]

The figures go into llama_cpp.INSTRUCTIONS.jaxVERSION.json, by the instruction set of the compiled
products (`jm.native()`). The weights of the rotated model are written as F32, Q8_0 and Q4_0, and as
Q4_K where llama.cpp's Q4_K_M has it and the rows are multiples of 256; the file of the model as it
was published, Q4_1, is there, too. We load codes as they are in the file. llama.cpp rounds what
its codes meet to 8 bits, 32 numbers at a time; we do not, except in the rows of "int8 activations"
(each token with a range of its own, `Dynamic`), of the same files.
Both programs write 64 tokens after a prompt of 16, one at a time, in turns, on the same cores with
as many threads; a figure is the median over rounds of a round's median. `bandwidth` is what the
cores copy a second, read and written, in memory. `cpu_ms` is CPU time of a token, which on one core
a busy neighbour changes less; `times_llama_cpp_by_cpu` is their ratio. Nothing else may run: the
load is in the file.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from this_machine import processor

PROMPT, TOKENS, MOST_LOAD = 16, 64, 0.5
FEW = 8  # tokens of the run whose CPU time is subtracted: it reads the prompt, too
SCRIPT = pathlib.Path(__file__).with_name("llama_cpp_speed.mjs")
COPIED = 2**28  # bytes
INT8 = ", int8 activations"


def write_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The GGUF files of one model, by their type."""
    import jaxmem as jm
    from jaxmem.models import downloading

    model = jm.models.rotate(jm.models.load("smollm2-135m"))
    table = {"(embed|head)/.*": jm.Int(8, group=32)}
    kinds = {
        "F32": {},
        "Q8_0": {".*(kernel|embedding)": jm.Int(8, group=32)},
        "Q4_0": table | {".*kernel": jm.Int(4, group=32)},
        "Q4_K": table | {".*/down/kernel": jm.KQuant(4), ".*kernel": jm.Int(5, group=32)},
    }
    paths = {"Q4_1 as published": downloading.fetch("smollm2-135m")}
    for kind, rules in kinds.items():
        paths[kind] = folder / f"{kind}.gguf"
        plan = jm.choose(model.tensors, rules) if rules else {}
        jm.interop.to_gguf(paths[kind], model, jm.encode(model.tensors, plan))
    return paths


def with_int8_activations(model):
    """The model whose matrices of codes meet numbers in 8 bits."""
    import jax

    import jaxmem as jm
    from jaxmem.codecs.dynamic_quantization import DynamicArray

    def wrap(path, leaf):
        is_matrix = jm.is_encoded(leaf) and "kernel" in jax.tree_util.keystr(path)
        return DynamicArray(leaf, None, "int8") if is_matrix else leaf

    params = jax.tree_util.tree_map_with_path(wrap, model.params, is_leaf=jm.is_encoded)
    return dataclasses.replace(model, tensors=params)


def copy_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read and write together, copying."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    pairs = [(np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)) for _ in range(threads)]
    best = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best.append(time.perf_counter() - start)
    return 2 * COPIED * threads / min(best)


def measure(paths: dict[str, str], clients: str, cores: int, rounds: int) -> dict:
    """Rows of one number of cores, to which this process is bound."""
    os.sched_setaffinity(0, range(cores))
    import numpy as np

    import jaxmem as jm

    command = ["node", str(SCRIPT), clients, str(cores)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    times: dict = collections.defaultdict(lambda: ([], []))
    cpu_times: dict = collections.defaultdict(lambda: ([], []))
    bandwidth, sizes, same = copy_bandwidth(cores), {}, {}
    with subprocess.Popen(command, **pipes) as node:
        models = {k: jm.models.load(p, encoded=k != "F32") for k, p in paths.items()}
        for kind in ("Q8_0", "Q4_0"):
            models[kind + INT8] = with_int8_activations(models[kind])
            paths[kind + INT8] = paths[kind]
        for round_index in range(rounds + 1):  # the first compiles, and loads the files
            for kind, path in paths.items():
                model = models[kind]
                ids = np.arange(PROMPT) * 37 % model.config.vocab
                task = {"path": path, "ids": ids.tolist(), "count": TOKENS}
                clock = [time.process_time()]
                for count in (FEW, TOKENS):
                    ours = jm.models.generate(model, ids, max_new_tokens=count)
                    clock.append(time.process_time())
                node.stdin.write(json.dumps(task) + "\n")
                node.stdin.flush()
                theirs = json.loads(node.stdout.readline())
                if round_index:
                    times[kind][0].append(ours.seconds_per_token)
                    times[kind][1].append(statistics.median(theirs["seconds"]))
                    more = ours.ids.shape[1] - FEW
                    cpu = (clock[2] - 2 * clock[1] + clock[0]) / more
                    cpu_times[kind][0].append(cpu)
                    cpu_times[kind][1].append(theirs["cpu_seconds"])
                sizes[kind] = jm.nbytes(model.params)
                pairs = zip(ours.ids[0].tolist(), theirs["tokens"])
                same[kind] = next((i for i, (a, b) in enumerate(pairs) if a != b), TOKENS)
        node.stdin.close()
    rows = {}
    for kind, (ours, theirs) in times.items():
        mine, their = statistics.median(ours), statistics.median(theirs)
        rows[kind] = {
            "bytes": sizes[kind],
            "ms_per_token": round(1e3 * mine, 3),
            "ms_per_token_llama_cpp": round(1e3 * their, 3),
            "times_llama_cpp": round(statistics.median(b / a for a, b in zip(ours, theirs)), 3),
            "cpu_ms": round(1e3 * statistics.median(cpu_times[kind][0]), 3),
            "cpu_ms_llama_cpp": round(1e3 * statistics.median(cpu_times[kind][1]), 3),
            "times_llama_cpp_by_cpu": round(
                statistics.median(b / a for a, b in zip(*cpu_times[kind])), 3
            ),
            "share_of_bandwidth": round(sizes[kind] / mine / bandwidth, 3),
            "tokens_equal_at_first": same[kind],
        }
    return {"bandwidth": round(bandwidth), "rows": rows}


def native() -> str | None:
    """The instruction set of the compiled products."""
    import jaxmem as jm

    return jm.native().instruction_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", required=True, help="the folder of node_modules")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--busy", action="store_true", help="run although something else does")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(**json.loads(args.task))))
        return
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not args.busy:
        raise SystemExit(f"the load of this machine is {load}, expected at most {MOST_LOAD}")
    import jax

    table = {
        "command": f"python experiments/speed/llama_cpp.py --clients FOLDER --rounds {args.rounds}",
        "jax": jax.__version__,
        "backend": "cpu",
        "machine": processor(),
        "native": native(),
        "seed": 0,
        "load": load,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {k: str(p) for k, p in write_files(pathlib.Path(folder)).items()}
        clients = str(pathlib.Path(args.clients).resolve())
        for cores in (1, 2):
            task = {"paths": paths, "clients": clients, "cores": cores, "rounds": args.rounds}
            run = [sys.executable, __file__, "--clients", clients, "--task", json.dumps(task)]
            done = subprocess.run(run, check=True, capture_output=True, text=True)
            table[f"cores={cores}"] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(table[f"cores={cores}"], indent=1), flush=True)
    name = f".{table['native'] or 'xla'}.jax{jax.__version__}.json"
    out = pathlib.Path(__file__).with_suffix(name)
    out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
