"""Damaged files, wrong calls, killed writers, transformations of lifted functions: all counted.

    python experiments/reliability/reliability.py            # hours: 11,510 files, 100 kills, 360
    python experiments/reliability/reliability.py --short    # minutes

It writes reliability.json: how many outcomes were of which class (`outcomes.py` says what the
classes mean), and each bad one.
"""

import argparse
import json
import pathlib

import bad_calls
import damaged_files
import jax
import kills
import transformations

LONG = {"files": 11_510, "kills": 100, "combinations": 360, "calls": ".*"}
SHORT = {"files": 550, "kills": 4, "combinations": 12, "calls": "[A-Z].*"}


def run(sizes: dict, seed: int) -> dict:
    """{part: its counts and bad outcomes}."""
    return {
        "damaged files": damaged_files.run(sizes["files"], seed),
        "kills": kills.run(sizes["kills"], seed),
        "wrong calls": bad_calls.run(sizes["calls"]),
        "transformations": transformations.run(sizes["combinations"], seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sizes = SHORT if options.short else LONG
    setting = {"jax": jax.__version__, "backend": jax.default_backend(), "seed": options.seed}
    counts = {"setting": setting | sizes} | run(sizes, options.seed)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
