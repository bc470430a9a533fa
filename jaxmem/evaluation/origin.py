"""Where a card's numbers come from: hashes of weights, files and texts, the licence, versions."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
from collections import Counter
from typing import Any

import jax
import numpy as np

from ..core.byte_counts import nbytes
from ..core.leaf import is_encoded
from ..core.paths import leaf_paths

FIT_RECORD = "fit.json"  # in a folder of `jaxmem fit`: its seconds, what it was calibrated with


def weights_sha256(params: Any) -> str:
    """The hash of a tree of weights: of each array's path, dtype, shape and bytes.

    Example:
        >>> a, b = {"w": np.zeros(3)}, {"w": np.zeros((3, 1))}
        >>> weights_sha256(a) == weights_sha256({"w": np.zeros(3)}), weights_sha256(a) == weights_sha256(b)
        (True, False)
    """  # noqa: E501
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def forms(params: Any) -> dict[str, int]:
    """{the form of a weight: how many weights have it}; a dense one's form is its dtype.

    Example:
        >>> forms({"a": np.zeros(3), "b": np.zeros(3)})
        {'float64': 2}
    """
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    return dict(Counter(type(x).__name__ if is_encoded(x) else str(x.dtype) for x in leaves))


def source_files(source: str) -> list[pathlib.Path]:
    """The files that a model was loaded from, by what `Model.source` says; none if none is there.

    Of a folder these are the files in it, without those in folders of it.

    Example:
        >>> import tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "params.jm").write_text("weights")
        >>> [path.name for path in source_files(f"{folder}, made from a model")], source_files("a")
        (['params.jm'], [])
    """
    path = pathlib.Path(source.split(", made from ", maxsplit=1)[0])
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() else []


def source_of(source: str) -> dict[str, Any]:
    """{"source", "licence", "calibration", "files"} of a model, by what `Model.source` says.

    The licence and the sha256 of a model that is known by name are in its source. A folder's
    licence is that in the head of its README.md, as Hugging Face has it. None if it is not said.
    `calibration` has the sha256 and the tokens of each text that `jaxmem fit` calibrated with,
    `files` the sha256 of each file.

    Example:
        >>> source_of("a==1, sha256 3f, licence MIT")["licence"]
        'MIT'
    """
    files = source_files(source)
    said = re.search(r", licence (.*)$", source)
    licence = said and said[1]
    for path in files:
        if licence is None and path.name == "README.md":
            said = re.search(r"^license:[ ]*(\S.*)$", path.read_text("utf-8", "replace"), re.M)
            licence = said and said[1].strip()
    digests = {}
    for path in files:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    found = {"source": source, "licence": licence, "files": digests}
    for path in files:
        if path.name == FIT_RECORD:
            found["calibration"] = json.loads(path.read_text("utf-8"))["calibration"] or None
    return found


def seconds_to_encode(source: str) -> float | None:
    """The seconds that `jaxmem fit` took, if it made the folder that a model was loaded from.

    Example:
        >>> seconds_to_encode("smollm2-135m") is None
        True
    """
    for path in source_files(source):
        if path.name == FIT_RECORD:
            return json.loads(path.read_text("utf-8")).get("seconds")
    return None


def plan_of(params: Any) -> dict[str, str]:
    """{path of an encoded weight: its form and bits}, which is what a plan made of the weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> plan_of({"w": jm.Int(8).encode(jnp.ones((64, 8))), "b": jnp.ones(8)})
        {'w': 'IntArray, 8.25 bits'}
    """
    found = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params, is_leaf=is_encoded)):
        if is_encoded(leaf):
            bits = 8 * nbytes(leaf) / max(leaf.size, 1)
            found[path] = f"{type(leaf).__name__}, {bits:.2f} bits"
    return found


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("jaxmem", "jax", "jaxlib", "flax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "backend": jax.default_backend(), **found}
