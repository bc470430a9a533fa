"""Programs killed while they write a prefix cache to the disk: no wrong page is ever found.

    python experiments/reliability/prefix_kills.py --kills 20

What a page holds follows from the tokens up to its end, so that a wrong one is seen. After each
kill the folder is opened again: each page found must be right, the files within the limit, and
nothing temporary left.
"""

import argparse
import collections
import functools
import hashlib
import json
import multiprocessing
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import jaxmem as jm

SIZE, PAGES, PROMPTS = 4, 6, 12
LIMIT = 200_000  # bytes of files: fewer than all prompts take
context = multiprocessing.get_context("forkserver")


def prompt(i: int) -> np.ndarray:
    """Tokens of a prompt; its first pages are those of others, too."""
    pages = [i % 3, i % 7, *(10 * i + j for j in range(PAGES - 2))]
    return np.append(np.repeat(pages, SIZE), 1)


def content(prefix: np.ndarray) -> np.ndarray:
    """What the last page of a prefix holds."""
    digest = hashlib.sha256(prefix.astype("<i4").tobytes()).digest()
    return np.frombuffer(digest * 200, np.uint8)


def opened(folder: pathlib.Path) -> jm.Prefixes:
    return jm.Prefixes(2 * PAGES, disk=LIMIT, path=folder, size=SIZE, of=0)


def write_until_killed(folder: pathlib.Path, running: pathlib.Path, seed: int) -> None:
    cache, draw, held = opened(folder), random.Random(seed), {}
    free, take = set(range(1, 100)), lambda page: content(held[page])
    while True:
        tokens = prompt(draw.randrange(PROMPTS))
        ids = list(cache.match(tokens).ids)
        ids += sorted(free)[: PAGES - len(ids)]
        held.update({page: tokens[: SIZE * (i + 1)] for i, page in enumerate(ids)})
        moves = cache.insert(tokens, ids, take=take)
        free = (free - set(moves.held)) | set(moves.freed)
        cache.flush(take=take)
        running.touch()


def after_a_kill(folder: pathlib.Path) -> dict[str, int]:
    """{what was found: how often}."""
    cache, counts = opened(folder), collections.Counter(right=0, wrong=0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    counts["left"] = sum(path.suffix != ".jm" for path in files)
    counts["over the limit"] = sum(path.stat().st_size for path in files) > LIMIT
    for i in range(PROMPTS):
        tokens = prompt(i)
        for j, page in enumerate(cache.match(tokens).blobs):
            right = np.array_equal(page, content(tokens[: SIZE * (j + 1)]))
            counts["right" if right else "wrong"] += 1
    counts["bad files"] = cache.stats().bad_files
    return counts


def run(
    kills: int,
    seed: int = 0,
    *,
    before: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Counts of what was found after `kills` kills at random times; `before` has the first ones."""
    context.set_forkserver_preload(["jaxmem"])
    done = before["setting"]["size"] if before else 0
    counts = collections.Counter(before["counts"] if before else {})
    bad = before["bad"] if before else []
    with tempfile.TemporaryDirectory() as name:
        folder, running = pathlib.Path(name, "pages"), pathlib.Path(name, "running")
        for i in range(done, kills):
            target = functools.partial(write_until_killed, folder, running, seed + i)
            writer = context.Process(target=target)
            writer.start()
            while not running.exists() and writer.is_alive():
                time.sleep(0.01)
            time.sleep(random.Random(seed + i).random() * 0.2)
            writer.kill()
            writer.join()
            running.unlink(missing_ok=True)
            found = after_a_kill(folder)
            counts.update(found)
            if found["wrong"] or found["left"] or found["over the limit"] or not found["right"]:
                bad.append([i, dict(found)])
                tell(f"kill {i}: {dict(found)}")
    return {"counts": dict(counts), "bad": bad}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.kills, options.seed)["counts"]))
