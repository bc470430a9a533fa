"""A damaged or foreign file is an error, and a save that fails or is killed leaves the old file."""

import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import CLASSES, ROOT, rounded, same

from jaxmem.architectures import gpt2
from jaxmem.io.checkpoint import load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.jm"


def test_one_flipped_bit_anywhere_is_an_error(path):
    save(path, tree := {"w": rounded()})
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it "):
            load(path, classes=CLASSES)
    path.write_bytes(good)
    same(load(path, classes=CLASSES), tree)


def test_a_truncated_or_longer_file_is_an_error(path):
    save(path, {"w": rounded()})
    good = path.read_bytes()
    for bad in [good[:i] for i in range(len(good))] + [good + b"\0", good + good]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it is"):
            load(path, classes=CLASSES)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89jaxmem\n" + b"\xff" * 90, b"\0" * 99])
def test_a_foreign_file_is_an_error_and_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it is"):
        load(path)
    assert path.read_bytes() == content


def test_a_directory_is_an_error_and_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is a directory"):
        save(tmp_path, {})
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"tree\.jm"):
        load(path)


@pytest.mark.parametrize(
    "leaf",
    [
        object(),
        {1, 2},
        np.array(["a"]),
        jax.ShapeDtypeStruct((1,), "f4"),
        gpt2.Config(vocab=64, width=32, layers=2, heads=4),
    ],
)
def test_what_cannot_be_saved_is_named_and_the_old_file_stays(path, leaf):
    save(path, {"old": 1})
    with pytest.raises(TypeError, match="cannot save 'layers/0/w'"):
        save(path, {"layers": [{"w": leaf}]})
    assert load(path) == {"old": 1}


def test_a_save_that_fails_half_way_leaves_the_old_file_and_nothing_else(path):
    save(path, {"old": 1})
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        save(path, {"a": jnp.ones(1000), "b": gone})
    assert load(path) == {"old": 1}
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_what_a_killed_save_left_is_removed_by_the_next(path):
    left = path.with_name(f".{path.name}.0badcafe.tmp")
    left.write_bytes(b"half")
    save(path, {"new": 1})
    assert not left.exists() and load(path) == {"new": 1}


def test_64_bit_arrays_ask_for_x64(path):
    with jax.enable_x64(True):
        save(path, jnp.arange(3.0, dtype=jnp.float64))
        assert load(path).dtype == jnp.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(path)


# Forks a process per point, so that jax is imported once; the kernel ends each at its point.
KILL = """
import os, resource, signal, sys
import numpy as np
import optax
from jaxmem.io.checkpoint import save
folder, points = sys.argv[1], sys.argv[2:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
for point in points:
    if os.fork() == 0:
        if point.isdigit():
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(point), int(point)))
        event = {"before": "os.rename", "after": "open"}.get(point)
        late = lambda name, args: "before" in point or os.path.isdir(args[0])
        sys.addaudithook(lambda name, args: kill() if name == event and late(name, args) else None)
        save(f"{folder}/{point}.jm", np.full(300_000, 2, np.uint8))
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]))
"""


POINTS = ["0", "10", "150000", "299000", "before", "after"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    for point in POINTS:
        save(folder / f"{point}.jm", np.full(300_000, 1, np.uint8))
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", KILL, str(folder), *POINTS]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return folder, dict(zip(POINTS, map(int, run.stdout.split())))


@pytest.mark.parametrize("point", POINTS)
def test_a_save_killed_at_any_point_leaves_the_old_file_or_the_new(killed, point):
    folder, signals = killed
    assert signals[point] in (signal.SIGKILL, signal.SIGXFSZ)
    tree = np.full(300_000, 2 if point == "after" else 1, np.uint8)
    np.testing.assert_array_equal(load(folder / f"{point}.jm"), tree)
