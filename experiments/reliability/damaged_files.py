"""Damaged files of every format: each loads, or is one error that names it: damaged_files.json.

    python experiments/reliability/damaged_files.py --files 11510

A file is damaged at random, read in whole, and compared with what the right file holds.
"""

import argparse
import collections
import json
import pathlib
import random
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from outcomes import BAD, Outcome, outcome
from small_files import SmallFile, small_files

SECONDS = 20.0  # for one file
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
VALUES = (None, True, -1, 0, 1e308, 2**31, 2**64, float("nan"), "text", "", [], {}, [[]], {"a": 1})


def flipped_bit(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def flipped_head(data: bytes, draw: random.Random) -> bytes:
    return flipped_bit(data[:512], draw) + data[512:]


def forged_number(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(min(len(data), 1024)), draw.choice([4, 8])
    number = (draw.choice(NUMBERS) % 256**size).to_bytes(size, "little")
    return data[:at] + number + data[at + size :]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice([0, draw.randrange(len(data)), draw.randrange(min(len(data), 512))])]


def shorter(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randrange(1, 40) :]


def longer(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.randrange(1, 40)) + data[at:]


def other_value(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text replaced by another, or a key taken away."""
    document = json.loads(data)
    places = list(_places(document))
    container, key = draw.choice(places)
    if isinstance(container, dict) and draw.random() < 0.2:
        del container[key]
    else:
        container[key] = draw.choice(VALUES)
    return json.dumps(document).encode()


def nested(data: bytes, draw: random.Random) -> bytes:
    return b"[" * draw.choice([100, 100_000])


def not_utf8(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + b"\xff\xfe" + data[at:]


BYTES = (flipped_bit, flipped_head, forged_number, cut, shorter, longer)
TEXT = (flipped_bit, cut, shorter, longer, nested, not_utf8, *[other_value] * 6)


def _places(node: Any) -> Any:
    """(container, key) of every value inside a JSON value."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield node, key
            yield from _places(value)


def read_damaged(file: SmallFile, right: Any, data: bytes) -> Outcome:
    """The outcome of reading a file whose bytes are `data`."""
    file.path.write_bytes(data)
    names = [file.path.name, str(file.path.parent)]

    def attempt() -> str:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            content = file.read()
        if same(content, right):
            return "right"
        if file.checked:
            return "wrong"
        is_told = any(name in str(w.message) for w in told for name in names)
        return "clear" if is_told else "valid"

    return outcome(attempt, names if file.path.suffix != ".json" else [*names, "JSON"], SECONDS)


def same(a: Any, b: Any) -> bool:
    """Whether two trees have equal structure and equal bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    bits = lambda x: np.asarray(x).tobytes() if hasattr(x, "dtype") else x
    return all(bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def run(files: int, seed: int = 0, *, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Counts of outcomes of each format, and the bad ones, of `files` damaged files in all."""
    counts: dict[str, collections.Counter] = {}
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        formats = small_files(pathlib.Path(folder))
        for name, file in formats.items():
            draw = random.Random(f"{seed} {name}")
            data, right = file.path.read_bytes(), file.read()
            counts[name] = collections.Counter()
            for i in range(files // len(formats)):
                damage = draw.choice(TEXT if file.is_text else BYTES)
                damaged = damage(data, draw)
                result, text = read_damaged(file, right, damaged)
                counts[name][result] += 1
                if result in BAD:
                    text = text.replace(folder, "")
                    bad.append([name, i, damage.__name__, result, text])
                    tell(f"{result:8} {name} {i} {damage.__name__}: {text}")
            file.path.write_bytes(data)
    return {"counts": counts, "bad": bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    setting = {"jax": jax.__version__, "backend": jax.default_backend()} | vars(options)
    result = {"setting": setting} | run(options.files, options.seed)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
