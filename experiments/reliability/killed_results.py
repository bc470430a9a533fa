"""A process that puts results on disk is killed 100 times: killed_results.json.

    python experiments/reliability/killed_results.py

After each kill another `jm.Reuse` opens the folder and reads every key: what it finds must be what
the key stands for, and the files must be within the limit. Then one byte of every file is flipped:
each must be a miss.
"""

import json
import os
import pathlib
import random
import signal
import tempfile
import time
import warnings

import jax
import numpy as np

import jaxmem as jm

KILLS, KEYS, SIZE, DISK, SEED = 100, 200, 2000, 1_000_000, 0


def result(key: int) -> dict:
    return {"vector": np.full(SIZE, key, np.float32), "count": key}


def put_forever(folder: str, seed: int) -> None:
    rng, results = random.Random(seed), jm.Reuse(memory=0, disk=DISK, path=folder)
    while True:
        key = rng.randrange(KEYS)
        results.put(str(key), result(key), seconds=rng.random())


def checked(folder: str) -> dict[str, int]:
    """Counts of right, missing, wrong results and of bytes, read after a kill."""
    results, right, wrong = jm.Reuse(memory=0, disk=DISK, path=folder), 0, 0
    for key in range(KEYS):
        found = results.get(str(key))
        if found is not None:
            same = found["count"] == key and (found["vector"] == key).all()
            right, wrong = right + bool(same), wrong + (not same)
    files = [file for file in pathlib.Path(folder).glob("??/*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    counts = {"right": right, "wrong": wrong, "damaged": results.stats().damaged}
    return counts | {"bytes": size, "leftovers": sum(f.name.startswith(".") for f in files)}


def main() -> None:
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # of a fork; the child runs no JAX
    rng, rounds = random.Random(SEED), []
    with tempfile.TemporaryDirectory() as folder:
        for n in range(KILLS):
            child = os.fork()
            if child == 0:
                put_forever(folder, n)
            time.sleep(rng.uniform(0.02, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            rounds.append(checked(folder))
        files = sorted(pathlib.Path(folder).glob("??/*.result"))
        for file in files:
            data = bytearray(file.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        flipped = checked(folder)
    total = lambda name: sum(row[name] for row in rounds)
    results = {
        "command": "python experiments/reliability/killed_results.py",
        "jax": jax.__version__,
        "seed": SEED,
        "kills": KILLS,
        "wrong_hits": total("wrong"),
        "right_hits": total("right"),
        "damaged_files": total("damaged"),
        "temporary_files_left": total("leftovers"),
        "most_bytes": max(row["bytes"] for row in rounds),
        "limit": DISK,
        "flipped": {"files": len(files)} | flipped,
    }
    print(json.dumps(results, indent=1))
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
