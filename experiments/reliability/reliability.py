"""Damaged files, wrong calls, kills, interrupts, transformations of lifted functions: all counted.

    python experiments/reliability/reliability.py            # hours: 11,510 files, 100 kills, ...
    python experiments/reliability/reliability.py --short    # minutes
    python experiments/reliability/reliability.py --only kills --size 30

It writes reliability.json: for each part its size, how many outcomes were of which class
(`outcomes.py` says what the classes mean), and each bad one. A part is written when it ends, and
the parts that did not run stay as they are in the file. "wrong calls" and "transformations" go on
where they were stopped: a file beside this script keeps their outcomes until the part has ended.
After fewer "transformations" than the size says, with the same seed and jax, only the rest runs.
"wrong calls" needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import bad_calls
import damaged_files
import interrupts
import jax
import kills
import prefix_kills
import transformations


class Part(NamedTuple):
    run: Callable[..., dict[str, Any]]  # of the size, and the seed if it draws
    long: int | str  # how many; of wrong calls a regex of public names
    short: int | str
    draws: bool = True
    resumes: bool = False
    adds: bool = False  # what a smaller size ran is the beginning of what a larger one runs


PARTS = {
    "damaged files": Part(damaged_files.run, 11_510, 550),
    "kills": Part(kills.run, 100, 4),
    "prefix kills": Part(prefix_kills.run, 100, 4, adds=True),
    "interrupts": Part(interrupts.run, 100, 5),
    "wrong calls": Part(bad_calls.run, ".*", "[A-Z].*", draws=False, resumes=True),
    "transformations": Part(transformations.run, 360, 12, resumes=True, adds=True),
}
JSON = pathlib.Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default=".*", help="a regex of parts")
    parser.add_argument("--size", help="of each part, in place of the long or the short one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in filter(re.compile(options.only).fullmatch, PARTS):
        part = PARTS[name]
        usual = part.short if options.short else part.long
        size = type(usual)(options.size or usual)
        log = JSON.with_name(f"{name}.jsonl")
        resumed = {"log": log} if part.resumes else {}
        setting = {"jax": jax.__version__, "backend": jax.default_backend(), "size": size}
        setting |= {"seed": options.seed} if part.draws else {}
        parts = json.loads(JSON.read_text()) if JSON.exists() else {}
        earlier = parts.get(name, {}).get("setting", {"size": math.inf})
        if part.adds and earlier["size"] < size and earlier | {"size": size} == setting:
            resumed["before"] = parts[name]
        result = part.run(size, *([options.seed] if part.draws else []), **resumed)
        parts[name] = {"setting": setting} | result
        JSON.write_text(json.dumps(parts, indent=1) + "\n")
        log.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
