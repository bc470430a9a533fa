"""What `jaxmem fit` of a model of 1 MB takes from the shell, in CPU seconds: fit_small.json.

    pip install -e ".[demo]"
    python experiments/speed/fit_small.py --model stories260K.bin

MODEL is stories260K of karpathy/tinyllamas, 1,056,540 bytes. The whole command is measured, its
imports too: the processor time of a fresh process, user and system, whatever else the machine does.
The first run compiles, and keeps its programs in a cache that was empty; the other ones are warm.
The time that Python takes to start and to import jax is measured in the same way.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile

import jax

SIZE, RUNS = "200kB", 3
IMPORTS = {
    "python": "pass",
    "import jax": "import jax",
    "the command's imports": "import jaxmem.commands.fit",
}


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """The processor time of a process and of those that it started."""
    spent = lambda usage: usage.ru_utime + usage.ru_stime
    before = spent(resource.getrusage(resource.RUSAGE_CHILDREN))
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=-3)
    return round(spent(resource.getrusage(resource.RUSAGE_CHILDREN)) - before, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAXMEM_CACHE": f"{folder}/cache", "JAX_PLATFORMS": "cpu"}
        start = [sys.executable, "-c"]
        arguments = lambda i: ["jaxmem", "fit", model, "--bytes", SIZE, "--out", f"{folder}/{i}"]
        fit = "import sys; from jaxmem.cli import main; sys.argv = "
        runs = [f"{fit}{arguments(i)!r}; raise SystemExit(main())" for i in range(1 + RUNS)]
        rows["fit, programs compiled"] = cpu_seconds([*start, runs[0]], environment)
        rows["fit, warm"] = [cpu_seconds([*start, run], environment) for run in runs[1:]]
        for name, line in IMPORTS.items():
            rows[name] = min(cpu_seconds([*start, line], environment) for _ in range(RUNS))
        programs = len(list(pathlib.Path(folder, "cache/programs").glob("*-cache")))
    results = {
        "command": f"python experiments/speed/fit_small.py --model {pathlib.Path(model).name}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": "cpu",
        "bytes": SIZE,
        "load": [round(x, 1) for x in os.getloadavg()],
        "programs": programs,
        "cpu_seconds": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
