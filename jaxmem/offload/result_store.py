"""Reuse: results by key in host memory and on disk, bounded by bytes; the cheapest to lose go."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arguments import BYTES, NUMBER, TEXT, Kind, shown, takes
from ..core.byte_counts import nbytes
from ..core.byte_sizes import parse
from ..core.codec import OPTIONAL_CODEC, Codec, needs_stats
from ..core.leaf import decode, is_encoded
from .result_folder import ResultFolder
from .seconds_per_byte import SecondsPerByte

_SIZE = Kind(
    f"{BYTES.expected}, or a text such as '64MB'", lambda x: BYTES.accepts(x) or TEXT.accepts(x)
)
_PATH = Kind("a path or None", lambda x: x is None or isinstance(x, str | os.PathLike))
_SECONDS = Kind("seconds of at least 0", lambda x: NUMBER.accepts(x) and 0 <= x < math.inf)


@dataclasses.dataclass(frozen=True)
class ReuseStats:
    """What a `Reuse` did and holds. Bytes of memory are `nbytes` of results, of the disk files'.

    Example:
        >>> stats = ReuseStats(hits=90, hits_disk=0, misses=10, entries=10, memory=10 * 16 * 1024,
        ...                    memory_capacity=1024 * 1024)
        >>> stats.hit_rate, stats.utilisation  # hits / accesses, occupied / capacity
        (0.9, 0.15625)
    """

    hits: int  # in memory or on disk
    hits_disk: int
    misses: int
    entries: int  # in memory
    memory: int  # bytes
    memory_capacity: int
    files: int = 0
    disk: int = 0  # bytes
    disk_capacity: int = 0
    seconds_saved: float = 0.0  # what the results of hits took to compute
    evicted: int = 0  # from memory, or by `evict`
    damaged: int = 0  # files that were removed, and count as misses
    unwritten: int = 0  # results for which the disk had no place

    @property
    def hit_rate(self) -> float:
        """Hits ÷ accesses; 0 before the first access."""
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def utilisation(self) -> float:
        """Occupied bytes of memory ÷ its capacity."""
        return self.memory / max(self.memory_capacity, 1)


class Reuse:
    """Results that were computed before, by key: in host memory, and on disk for the next process.

    Each tier has its limit in bytes, and gives up the results that save the fewest seconds for each
    byte (Cherkasova, 1998). A result is any tree that `jm.save` takes. With a `codec` its arrays of
    floats wait encoded, each along its last axis. The disk has one file for each result, which
    appears whole and is checked when it is read: a damaged file is a miss. A kill leaves no wrong
    result, and a full disk only means that later results are not on it. Arrays that `get` returns
    are NumPy's, and cannot be written to.

    Args:
        memory: bytes of arrays in host memory; or a text, such as "64MB".
        disk: bytes of files, or a text. A result is written when it is put.
        path: the folder of the files, which one process at a time may have; needed if `disk` is
            not 0.
        codec: such as `jm.Int(8)`.

    Raises:
        ValueError: `disk` is given without `path` or `path` without `disk`, another process has
            the folder, the codec needs statistics, or a text is no size.

    Example:
        >>> import numpy as np, jaxmem as jm
        >>> results = jm.Reuse(memory="10kB", codec=jm.Int(8))
        >>> kept = results.put("ones", np.ones(1000, np.float32), seconds=0.5)
        >>> results.has("ones"), results.has("twos"), results.get("ones").shape
        (True, False, (1000,))
        >>> results.stats().memory, results.stats().hit_rate
        (1002, 1.0)
    """

    @takes(memory=_SIZE, disk=_SIZE, path=_PATH, codec=OPTIONAL_CODEC)
    def __init__(
        self,
        *,
        memory: int | str,
        disk: int | str = 0,
        path: str | os.PathLike | None = None,
        codec: Codec | None = None,
    ) -> None:
        memory, disk = (parse(x) if isinstance(x, str) else int(x) for x in (memory, disk))
        if (disk > 0) != (path is not None):
            raise ValueError(f"Reuse: disk is {disk} and path is {path}, expected both or neither")
        if codec is not None and needs_stats(codec):
            raise ValueError(
                f"Reuse: codec is {codec}, which needs statistics of a weight's inputs"
            )
        self.codec = codec
        self._order, self._trees = SecondsPerByte(memory), {}
        self._folder = ResultFolder(pathlib.Path(path), disk) if path is not None else None
        self._hits = self._hits_disk = self._misses = self._evicted = 0
        self._saved = 0.0

    @takes(key=TEXT)
    def has(self, key: str) -> bool:
        """Whether a result is there; this counts as no access."""
        return key in self._order or (self._folder is not None and key in self._folder)

    @takes(key=TEXT)
    def get(self, key: str, default: Any = None) -> Any:
        """The result of a key, or `default`. One that was only on disk is in memory afterwards."""
        if key in self._order:
            tree, seconds = self._trees[key], self._order.seconds(key)
            self._order.touch(key)
        else:
            found = self._folder.get(key) if self._folder is not None else None
            if found is None:
                self._misses += 1
                return default
            tree, seconds = found
            self._hits_disk += 1
            self._remember(key, tree, seconds)
        self._hits += 1
        self._saved += seconds
        return self._decoded(tree)

    @takes(key=TEXT, seconds=_SECONDS)
    def put(self, key: str, tree: Any, *, seconds: float) -> Any:
        """Keeps the result of a key, which took `seconds`; returns it as `get` will.

        With a codec that is not what went in: use it in the place of `tree`, so that a first
        answer equals a later one. A result that is larger than a tier is not kept there.

        Raises:
            TypeError: the result has no array, whose bytes could be counted, or a tracer; or what
                cannot be saved, and there is a folder.
        """
        leaves = jax.tree.leaves(tree)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            raise TypeError("put: tree has a tracer, expected arrays: call it outside of jit")
        if not any(isinstance(x, np.ndarray | np.generic | jax.Array) for x in leaves):
            raise TypeError(f"put: tree is {shown(tree)}, expected an array or a tree of arrays")
        kept = jax.tree.map(_in_host_memory, self._encoded(tree))
        if self._folder is not None:
            self._folder.put(key, kept, seconds)
        self._remember(key, kept, seconds)
        return self._decoded(kept)

    @takes(nbytes=BYTES)
    def evict(self, nbytes: int, tier: Literal["memory", "disk"] = "memory") -> int:
        """Gives up the results of least worth until `nbytes` are free; returns the bytes freed.

        Raises:
            ValueError: `tier` is neither "memory" nor "disk".
        """
        if tier not in ("memory", "disk"):
            raise ValueError(f"evict: tier is {tier!r}, expected 'memory' or 'disk'")
        if tier == "disk":
            return self._folder.evict(int(nbytes)) if self._folder is not None else 0
        before = self._order.used
        self._forget(self._order.evict(int(nbytes)))
        return before - self._order.used

    def stats(self) -> ReuseStats:
        """What was found and what is held."""
        of_disk = {}
        if self._folder is not None:
            order = self._folder.order
            of_disk = {"files": len(order), "disk": order.used, "disk_capacity": order.capacity}
            of_disk |= {"damaged": self._folder.damaged, "unwritten": self._folder.unwritten}
        return ReuseStats(
            hits=self._hits,
            hits_disk=self._hits_disk,
            misses=self._misses,
            entries=len(self._order),
            memory=self._order.used,
            memory_capacity=self._order.capacity,
            seconds_saved=self._saved,
            evicted=self._evicted,
            **of_disk,
        )

    def _remember(self, key: str, tree: Any, seconds: float) -> None:
        """Puts a result, as it is kept, in memory, if it is worth more than others there."""
        gone = self._order.add(key, nbytes(tree), seconds)
        self._trees[key] = tree
        self._forget(gone)

    def _forget(self, keys: list[str]) -> None:
        for key in keys:
            del self._trees[key]
        self._evicted += len(keys)

    def _encoded(self, tree: Any) -> Any:
        """The tree with arrays of floats encoded."""
        if self.codec is None:
            return tree
        encode = lambda x: _encoder(self.codec)(x) if _is_encodable(x) else x
        return jax.tree.map(encode, tree, is_leaf=is_encoded)

    def _decoded(self, kept: Any) -> Any:
        """A kept tree with NumPy arrays of numbers."""
        if self.codec is None:
            return kept
        plain = lambda x: _in_host_memory(_decode(x)) if is_encoded(x) else x
        return jax.tree.map(plain, kept, is_leaf=is_encoded)


_decode = jax.jit(decode)


@functools.cache
def _encoder(codec: Codec) -> Callable:
    """Encodes an array along its last axis; a program for each shape."""
    return jax.jit(lambda x: codec.encode(x, axes=(-1,)))


def _is_encodable(x: Any) -> bool:
    """Whether `x` is an array of floats, with an axis along which it may be encoded."""
    is_array = isinstance(x, np.ndarray | jax.Array)
    return is_array and x.ndim > 0 and x.size > 0 and jnp.issubdtype(x.dtype, jnp.floating)


def _in_host_memory(x: Any) -> Any:
    """A copy of an array that nobody can change; anything else as it is."""
    if not isinstance(x, np.ndarray | jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    array = np.array(x)
    array.setflags(write=False)
    return array
