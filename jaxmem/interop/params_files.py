"""read_params: a tree of arrays from a file of another tool, in which nothing is unpickled."""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.arguments import takes
from ..formats.safetensors import safetensors

_ORBAX = "_METADATA"  # is in each folder of arrays that orbax wrote


@takes()
def read_params(path: str | os.PathLike) -> dict[str, Any]:
    """The nested dict of arrays in a file or folder, for `jm.models.from_flax(module, params)`.

    `path` is a `.msgpack` of flax.serialization, an `.npz` of NumPy, an `.h5` or `.hdf5`, a
    `.safetensors`, or a folder of arrays of orbax: the item of a step, or the step of one item. In
    files of flat names, "/" separates levels, and "." in safetensors. The `value` of an NNX
    variable is taken for the variable, and a level named 0, 1, 2, ... has numbers for names, as
    the lists of NNX have. Folders that `jm.interop.orbax.Save` wrote have encoded leaves.

    Raises:
        ValueError: the file is damaged, holds Python objects, or is of another type.
        ImportError: h5py is missing; the message names the extra.

    Example:
        >>> import tempfile, numpy as np, jaxmem as jm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/w.npz", **{"layers/0/kernel": np.ones((2, 3))})
        ...     jm.interop.read_params(f"{folder}/w.npz")["layers"][0]["kernel"].shape
        (2, 3)
    """
    path = pathlib.Path(path)
    kind = "" if path.is_dir() else path.suffix
    if not path.exists() or kind not in _READERS:
        known = ", ".join(filter(None, _READERS))
        raise ValueError(f"{path} is no file of {known}, and no folder of orbax")
    return _named(_READERS[kind](path), path)


def _msgpack(path: pathlib.Path) -> Any:
    """The tree of a file of flax.serialization."""
    from flax import serialization

    try:
        return serialization.msgpack_restore(path.read_bytes())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no msgpack of flax: {error!r}") from error


def _npz(path: pathlib.Path) -> Any:
    """The arrays of an npz."""
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it is one array, an npy")
            with file:
                arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is no npz of plain arrays: {error}; objects of Python are pickles, which can "
            "run any code when they are read"
        ) from error
    for name, array in arrays.items():
        _check_numbers(path, name, array.dtype)
    return _nested(arrays, "/")


def _hdf5(path: pathlib.Path) -> Any:
    """The datasets of an HDF5 file; links to other files are not followed."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ImportError(f'reading {path} wants h5py: pip install "jaxmem[hdf5]"') from error
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            _check_numbers(path, name, item.dtype)
            if item.external or item.is_virtual:
                raise ValueError(f"{path}: {name} lies in another file, expected it in this one")
            found[name] = item[()]

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except OSError as error:
        raise ValueError(f"{path} is no whole HDF5 file: {error}") from error
    return _nested(found, "/")


def _safetensors(path: pathlib.Path) -> Any:
    """The tensors of a safetensors file."""
    return _nested({name: tensor.load() for name, tensor in safetensors(path).items()}, ".")


def _orbax(path: pathlib.Path) -> Any:
    """The arrays in a folder of orbax, as NumPy arrays; encoded leaves if it describes them."""
    import jax
    import orbax.checkpoint as ocp

    from .orbax import Handler

    folder = path / "default" if (path / "default" / _ORBAX).is_file() else path
    if not (folder / _ORBAX).is_file():
        raise ValueError(f"{path} is no folder of arrays of orbax: it has no {_ORBAX}")
    try:
        metadata = Handler().metadata(folder)
        if "jaxmem" in (metadata.custom_metadata or {}):
            return Handler().restore(folder)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return ocp.PyTreeCheckpointHandler().restore(folder, args=arguments)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is no whole folder of orbax: {error}") from error


_READERS: dict[str, Callable[[pathlib.Path], Any]] = {
    "": _orbax,
    ".msgpack": _msgpack,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".safetensors": _safetensors,
}


def _check_numbers(path: pathlib.Path, name: str, dtype: np.dtype) -> None:
    """Refuses an array of texts, dates or records, and bytes whose type the file does not name."""
    if dtype.kind not in "biufc":
        raise ValueError(
            f"{path}: {name} is of {dtype}, expected numbers; this format has no bfloat16 and no "
            "float8, which .safetensors and .msgpack have"
        )


def _nested(arrays: dict[str, np.ndarray], separator: str) -> dict[str, Any]:
    """{name with separators: array} as nested dicts.

    Raises:
        ValueError: a name is of an array and of a level.
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split(separator)
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                break
        if not isinstance(at, dict) or last in at:
            raise ValueError(f"{name} is the name of an array, and of a level above another one")
        at[last] = array
    return tree


def _named(tree: Any, path: pathlib.Path) -> Any:
    """The tree without levels named `value`, and with numbers for names that count from 0."""
    if not isinstance(tree, dict):
        if isinstance(tree, str | bytes):
            raise ValueError(f"{path} holds a text, expected arrays")
        return tree
    if list(tree) == ["value"] and not isinstance(tree["value"], dict):
        return tree["value"]
    tree = {name: _named(part, path) for name, part in tree.items()}
    counts = {str(i): i for i in range(len(tree))}
    if tree and {str(name) for name in tree} == counts.keys():
        return dict(
            sorted(((counts[str(n)], part) for n, part in tree.items()), key=lambda x: x[0])
        )
    return tree
