"""What a user sees first on a laptop: the table of `jaxmem demo`, a first token of `generate`.

    python experiments/speed/first_line.py DIR --parts first_token demo   # a minute; six minutes

Fits SmolLM2 as the README says into DIR, unless it is there. Then `jaxmem generate` runs in
processes of its own, of which the first may compile and the others find its programs in the cache:
seconds from the start of the process to its end with one new token. A part that is named is
written into first_line.json, in which the others stay; each version of jax and CPU has its own.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax
from this_machine import processor

import jaxmem as jm

PROMPT = "What is the capital of France?"
FIT = ("fit", "smollm2-135m", "--bytes", "100MB", "--rotate")
RUNS = 5


def run(*command: str, cwd: pathlib.Path) -> tuple[str, float, float]:
    """(what `jaxmem` prints, its seconds, and those of processors)."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    begin, before = time.perf_counter(), used()
    arguments = [sys.executable, "-m", "jaxmem", *command]
    done = subprocess.run(arguments, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, time.perf_counter() - begin, used() - before


def first_token(folder: pathlib.Path) -> dict:
    """Seconds of processes that write one token."""
    if not (folder / "small").exists():
        run(*FIT, "--out", "small", cwd=folder)
    generate = ("generate", "small", "--prompt", PROMPT, "--max-new-tokens", "1")
    runs = [run(*generate, cwd=folder)[1:] for _ in range(RUNS + 1)][1:]
    return {
        "model": "smollm2-135m, " + " ".join(FIT[2:]),
        "seconds": [round(seconds, 2) for seconds, _ in runs],
        "median_seconds": statistics.median(seconds for seconds, _ in runs),
        "median_processor_seconds": statistics.median(used for _, used in runs),
    }


def demo(folder: pathlib.Path) -> dict:
    """The rows of the demo, with their times of the dense one's speed."""
    table = json.loads(run("demo", "--json", cwd=folder)[0])
    keys = "name", "decode_seconds_per_token", "bytes"
    rows = [{key: row[key] for key in keys} for row in table["rows"]]
    for row in rows:
        seconds = row["decode_seconds_per_token"]
        row["times_dense"] = rows[0]["decode_seconds_per_token"] / seconds
    return {"rows": rows}


PARTS = {"first_token": first_token, "demo": demo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    result = json.loads(path.read_text()) if path.exists() else {}
    parts = result.setdefault(f"jax {jax.__version__}, {processor()}", {})
    for name in arguments.parts:
        about = {
            "backend": jax.default_backend(),
            "native": jm.native().instruction_set,
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
        }
        parts[name] = about | PARTS[name](arguments.dir)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
