"""Writers that are killed: at the path there is always a whole old tree or a whole new one.

    python experiments/reliability/kills.py --kills 20

A process saves one tree after another to the same paths, with `jm.save` and `Model.save`, until it
is killed. Then both are read, and the next save must leave nothing beside them.
"""

import argparse
import collections
import json
import multiprocessing
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from outcomes import BAD, outcome

import jaxmem as jm
from jaxmem.architectures import llama

SECONDS = 60.0  # for one reading


def model(fill: int) -> jm.models.Model:
    """A model whose weights are all `fill`."""
    config = llama.Config(vocab=64, width=64, ffn=64, layers=1, heads=2, kv_heads=1, head_dim=32)
    return jm.models.Model(config, {"w": np.full((200, 500), fill, np.float32)}, None, "filled")


def save_both(folder: pathlib.Path, fill: int) -> None:
    jm.save(folder / "tree.jm", {"w": np.full((200, 500), fill, np.float32)})
    model(fill).save(folder / "model")


def save_until_killed(folder: pathlib.Path) -> None:
    fill = 0
    while True:
        fill += 1
        save_both(folder, fill)
        (folder / "running").touch()


def state_after_a_kill(folder: pathlib.Path) -> str:
    """The class of what a killed writer left, and of what the next save leaves."""
    trees = jm.load(folder / "tree.jm"), jm.load(folder / "model" / "params.jm")
    (folder / "running").unlink(missing_ok=True)
    save_both(folder, 0)
    left = {path.name for path in folder.iterdir()} - {"tree.jm", "model"}
    whole = all(len(np.unique(np.asarray(tree["w"]))) == 1 for tree in trees)
    return "right" if whole and not left else "wrong"


def run(kills: int, seed: int = 0, *, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Counts of outcomes of `kills` kills at random times."""
    processes = multiprocessing.get_context("spawn")
    draw, counts, bad = random.Random(seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for i in range(kills):
            save_both(folder, 0)
            writer = processes.Process(target=save_until_killed, args=(folder,))
            writer.start()
            while not (folder / "running").exists() and writer.is_alive():
                time.sleep(0.01)
            time.sleep(draw.random() * 0.2)
            writer.kill()
            writer.join()
            result, text = outcome(
                lambda: state_after_a_kill(folder), ["tree.jm", "model"], SECONDS
            )
            result = "wrong" if result == "clear" else result  # nothing may be lost
            counts[result] += 1
            if result in BAD:
                bad.append([i, result, text.replace(name, "")])
                tell(f"{result:8} kill {i}: {text}")
    return {"counts": counts, "bad": bad}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.kills, options.seed)["counts"]))
