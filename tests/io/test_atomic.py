"""A file or a directory is replaced whole, or stays as it was."""

import ctypes
import errno
import os
import pathlib
import random
import stat
import subprocess
import sys
import threading
import time

import pytest

from jaxmem.io import atomic
from jaxmem.io.atomic import replacing, temporary_path, write_whole


def write_directory(path: pathlib.Path, text: str) -> None:
    path.mkdir(exist_ok=True)
    (path / "a").write_text(text)


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: pathlib.Path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]


@pytest.mark.parametrize("swap", [False, True])
def test_a_block_that_raises_changes_nothing(swap, tmp_path: pathlib.Path):
    write_directory(tmp_path / "d", "one")
    with (
        pytest.raises(KeyError),
        replacing(tmp_path / "d", directory=True, replace_directory=swap) as temporary,
    ):
        write_directory(temporary, "two")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "one"


def test_a_directory_takes_the_place_of_another_only_if_asked_to(tmp_path: pathlib.Path):
    write_directory(tmp_path / "d", "one")
    with (
        pytest.raises(OSError, match="not empty"),
        replacing(tmp_path / "d", directory=True) as temporary,
    ):
        write_directory(temporary, "two")
    assert (tmp_path / "d" / "a").read_text() == "one"
    with replacing(tmp_path / "d", replace_directory=True) as temporary:
        write_directory(temporary, "two")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "two"


def test_no_file_is_begun_where_a_directory_is(tmp_path: pathlib.Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a directory is where a file shall be: .*out"):
        write_whole(tmp_path / "out", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_directory_is_replaced_and_its_target_kept(tmp_path: pathlib.Path):
    write_directory(tmp_path / "target", "one")
    (tmp_path / "link").symlink_to(tmp_path / "target", target_is_directory=True)
    with replacing(tmp_path / "link", replace_directory=True) as temporary:
        write_directory(temporary, "two")
    assert (tmp_path / "target" / "a").read_text() == "one"
    assert (tmp_path / "link" / "a").read_text() == "two"


def test_what_dead_writers_left_goes_and_what_others_write_stays(tmp_path: pathlib.Path):
    path = tmp_path / "step"
    dead = [temporary_path(path, "0badcafe"), temporary_path(path, "1badcafe")]
    dead[0].write_text("half")
    write_directory(dead[1], "half")
    with replacing(path) as at_work, replacing(tmp_path / "step.2") as other_path:
        write_whole(path, b"one")
        assert at_work.exists() and other_path.exists()
        assert not any(leftover.exists() for leftover in dead)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step", "step.2"]


@pytest.mark.parametrize("directory", [False, True])
def test_of_many_writers_at_once_the_last_one_wins(directory, tmp_path: pathlib.Path):
    texts, errors = [letter * 1000 for letter in "abcdefgh"], []

    def write(text: str) -> None:
        try:
            for _ in range(5):
                with replacing(tmp_path / "x", replace_directory=directory) as temporary:
                    file = temporary / "a" if directory else temporary
                    file.write_text(text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a" if directory else tmp_path / "x").read_text() in texts


WRITER = """
import importlib.util, itertools, pathlib, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
print("started", flush=True)
for i in itertools.count():
    with atomic.replacing(pathlib.Path(sys.argv[2]), replace_directory=True) as temporary:
        for name in "ab":
            (temporary / name).write_text(str(i) * 1000)
"""


def test_a_killed_writer_leaves_the_old_directory_or_the_new_one(tmp_path: pathlib.Path):
    path = tmp_path / "model"
    with replacing(path, replace_directory=True) as temporary:
        for name in "ab":
            (temporary / name).write_text("first")
    moments = random.Random(0)
    for _ in range(12):
        command = [sys.executable, "-c", WRITER, atomic.__file__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline()
            time.sleep(moments.uniform(0, 0.02))
            writer.kill()
        assert (path / "a").read_text() == (path / "b").read_text() != ""
    write_whole(tmp_path / "other", b"")
    with replacing(path, replace_directory=True) as temporary:
        (temporary / "a").write_text("last")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "other"]


def test_a_file_keeps_its_mode_and_a_full_disk_names_the_path(tmp_path: pathlib.Path):
    write_whole(tmp_path / "a", b"one")
    (tmp_path / "a").chmod(0o600)
    write_whole(tmp_path / "a", b"two")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/b'"),
        replacing(tmp_path / "b"),
    ):
        raise OSError(28, os.strerror(28))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_where_directories_cannot_change_places_the_old_one_is_moved_aside(tmp_path, monkeypatch):
    class WithoutExchange:
        def __getattr__(self, name):
            def refuse(*_):
                ctypes.set_errno(errno.EINVAL)
                return -1

            return refuse

    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: WithoutExchange())
    for text in ("one", "two"):
        with replacing(tmp_path / "d", replace_directory=True) as temporary:
            (temporary / "a").write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "two"
