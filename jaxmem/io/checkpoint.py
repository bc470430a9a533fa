"""save, load: any tree of arrays and encoded leaves in one file that describes itself.

A file is a header (see `checkpoint_header`), then the bytes of the arrays with nothing between,
sub-byte numbers packed. Every byte is under a checksum, the same tree gives the same bytes, one
rename replaces a file, and one array at a time is in transit. With `compress` the bytes of each
array are compressed without loss, and the header says how many bytes each takes.
A file without takes at most `nbytes(tree)` + 1 KiB + 1 KiB an array + 128 bytes a shard.

Orbax does not serve here: version 0.12.8 returned some 20 of 80 single altered bytes as data, took
up to twice the bytes to restore, and its directory of randomly named files cannot be replaced by
one rename.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from . import lossless, multihost, packed_bytes
from .aligned_memory import aligned
from .checkpoint_header import Slot, Span, header, read_header, span_of, span_size, spans_of
from .manifest import describe, known_classes, rebuild

MOST_CALLS = 8_000  # calls inside each other while a tree is described or rebuilt


def save(path: str | os.PathLike, tree: Any, *, compress: bool = False) -> None:
    """Writes `tree` to the file `path`, which is replaced in one step once all is on the disk.

    Takes dicts, lists, tuples, named tuples, None, strings, Python and NumPy scalars, arrays of
    JAX and NumPy, random keys, encoded leaves and other dataclasses, flax `FrozenDict` and
    `TrainState`, nnx `State` and variables. Of a function only the name is written. Of a
    sharded array each process writes its own shards, into a file system that all processes share.
    A save that is killed leaves the old file whole and a `.tmp` file beside it, which the next save
    removes: only one save of a path may run at a time. `compress` writes fewer bytes, without loss:
    about 0.66 of dense bfloat16 weights, hardly fewer of packed codes. `load` reads both.

    Raises:
        TypeError: the tree holds something else; the message says where.
        ValueError: `path` is a directory, processes save trees that are not alike, several
            processes are to compress one file, or the tree is thousands of levels deep.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/w.jm", {"w": jnp.arange(4, dtype=jnp.int4), "step": 3})
        ...     load(f"{folder}/w.jm")
        {'w': Array([0, 1, 2, 3], dtype=int4), 'step': 3}
    """
    path = _checked_path(path, "save")
    if not isinstance(compress, bool):
        raise TypeError(f"save: compress is {compress!r}, expected a bool")
    if path.is_dir():
        raise ValueError(f"cannot save to {path}: it is a directory, expected a file")
    arrays: list[np.ndarray | jax.Array] = []
    with _many_levels(path):
        node = describe(tree, arrays)
    spans = [spans_of(x) for x in arrays]
    checksums = np.zeros(sum(map(len, spans)), np.uint32)
    sizes = np.zeros(len(checksums), np.uint64) if compress else None
    if jax.process_count() > 1 and compress:
        raise ValueError(f"cannot compress {path}: several processes write it")
    with _many_levels(path):
        blank = header(node, arrays, spans, checksums, sizes)  # as long as the final header
    with multihost.replacing_together(path, blank) as temporary, open(temporary, "r+b") as file:
        file.seek(len(blank))
        _write_parts(file, arrays, spans, checksums, sizes)
        file.flush()
        os.fsync(file.fileno())
        checksums = multihost.largest(checksums)  # a part that another process wrote is 0 here
        if jax.process_index() == 0:
            file.seek(0)
            with _many_levels(path):
                file.write(header(node, arrays, spans, checksums, sizes))


def load(
    path: str | os.PathLike,
    *,
    classes: Iterable[type] = (),
    functions: Mapping[str, Any] | None = None,
    shardings: Any = None,
) -> Any:
    """The tree that `save` wrote; no template is needed.

    Classes of leaves are looked up by name in jaxmem and in `classes`, where your own dataclasses,
    named tuples and nnx variables go. `functions` gives back what a file cannot keep, by path:
    `{"apply_fn": model.apply, "tx": optax.adam(1e-3)}` for a `TrainState`. `shardings` is one
    `jax.sharding.Sharding`, a tree of them that fits the saved tree or a prefix of it, or a
    function from the tree of shapes to such a tree; a process reads only the parts that its devices
    need, whichever process wrote them. Without `shardings` arrays go to the default device. NumPy
    arrays come back as NumPy arrays.

    Raises:
        ValueError: `path` is not a file of `save`, is truncated or altered, names a class or a
            function that is not known, has nothing at a path of `functions`, or holds a 64-bit
            array while `jax_enable_x64` is off; the message names the file.
    """
    path = _checked_path(path, "load")
    if not (functions is None or isinstance(functions, Mapping)):
        raise TypeError(f"load: functions is {functions!r}, expected a mapping from paths")
    classes = list(classes) if isinstance(classes, Iterable) else [classes]
    if not all(isinstance(c, type) for c in classes):
        raise TypeError(f"load: classes is {classes!r}, expected a list of classes")
    if path.is_dir():
        raise ValueError(f"cannot load {path}: it is a directory, expected a file")
    try:
        with open(path, "rb") as file, _many_levels(path):
            node, slots = read_header(file)
            known, unused = known_classes(classes), dict(functions or {})
            tree = rebuild(node, slots, known, unused)  # slots stand for the arrays, as shapes
            if unused:
                raise ValueError(f"it holds nothing at {next(iter(unused))!r}, a path of functions")
            sharding_of = {}  # by the slot's id
            if shardings is not None:
                asked = shardings(tree) if callable(shardings) else shardings
                for sharding in jax.tree.leaves(asked):
                    if not isinstance(sharding, jax.sharding.Sharding):
                        raise TypeError(f"load: shardings has {sharding!r}, expected Shardings")
                leaves = jax.tree.leaves(tree), jax.tree.leaves(jax.tree.broadcast(asked, tree))
                sharding_of = {id(slot): sharding for slot, sharding in zip(*leaves)}
            arrays = [_read(file, slot, sharding_of.get(id(slot))) for slot in slots]
            return rebuild(node, arrays, known, dict(functions or {}))
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from error


def _checked_path(path: Any, function: str) -> pathlib.Path:
    """The path; TypeError if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{function}: path is a {type(path).__name__}, expected a str or a PathLike"
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def _many_levels(path: pathlib.Path) -> Iterator[None]:
    """Lets the block recurse into a tree of some 1,000 levels; each level takes a few calls.

    Raises:
        ValueError: the tree has more levels.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, MOST_CALLS))
    try:
        yield
    except RecursionError as error:
        raise ValueError(
            f"the tree of {path} has too many levels, expected at most 1,000"
        ) from error
    finally:
        sys.setrecursionlimit(limit)


def _write_parts(
    file: BinaryIO,
    arrays: list[np.ndarray | jax.Array],
    spans: list[list[Span]],
    checksums: np.ndarray,
    sizes: np.ndarray | None,
) -> None:
    """Writes this process's parts from the file's position on; fills in `checksums`, `sizes`.

    `checksums` and `sizes` have one entry for each part. With `sizes`, parts are compressed.
    """
    offset, n = file.tell(), 0
    for x, parts in zip(arrays, spans):
        if isinstance(x, jax.Array):
            shards = [s for s in x.addressable_shards if s.replica_id == 0]
            data_of = {span_of(x.shape, s.index): s.data for s in shards}
        else:
            data_of = {parts[0]: x} if jax.process_index() == 0 else {}
        for span in parts:
            size = packed_bytes.stored_bytes(span_size(span), x.dtype)
            if span in data_of:
                file.seek(offset)
                if sizes is None:
                    checksums[n] = packed_bytes.write(file, data_of[span])
                else:
                    checksums[n], size = lossless.write(file, data_of[span])
                    sizes[n] = size
            offset, n = offset + size, n + 1


def _read(file: BinaryIO, slot: Slot, sharding: jax.sharding.Sharding | None) -> Any:
    """The array of a slot, as NumPy had it, on the default device, or as `sharding` says."""
    as_numpy = slot.numpy and sharding is None
    if not as_numpy and jax.dtypes.canonicalize_dtype(slot.dtype) != slot.dtype:
        raise ValueError(f"it holds an array of {slot.dtype}; set jax_enable_x64 to load it")
    wanted = [span_of(slot.shape, ())]
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(slot.shape).values()
        wanted = [span_of(slot.shape, index) for index in indices]
    host = aligned(slot.shape, slot.dtype)  # pages that are never filled take no memory
    for part in slot.parts:
        if not any(_overlap(part.span, span) for span in wanted):
            continue
        file.seek(part.offset)
        one = len(slot.parts) == 1
        data = host if one else np.empty([b - a for a, b in part.span], host.dtype)
        read_into = lossless.read_into if slot.compressed else packed_bytes.read_into
        if read_into(file, data, part.nbytes) != part.crc32:
            array = f"an array of {slot.dtype} {slot.shape}"
            raise ValueError(f"it is damaged: {array} does not match its checksum")
        if not one:
            host[tuple(slice(*ends) for ends in part.span)] = data
    if sharding is not None:
        return jax.make_array_from_callback(slot.shape, sharding, lambda index: host[index])
    return host if as_numpy else jax.device_put(host, may_alias=True)


def _overlap(one: Span, other: Span) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other))
