"""reuse: a function whose result for a row is computed once, however often the row comes."""

import bisect
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arguments import ARGNUMS, INTEGERS, Kind, takes
from ..core.repeated_layers import equations
from .result_store import Reuse

_SIZES = Kind(
    "a rising tuple of ints of at least 1",
    lambda x: INTEGERS.accepts(x) and bool(x) and x[0] >= 1 and list(x) == sorted(set(x)),
)
_TOLERANCE = 1e-3  # of the largest number: how far a row may differ beside other rows


@takes(on=ARGNUMS, sizes=_SIZES)
def reuse(
    fn: Callable,
    results: Reuse,
    *,
    on: int | Sequence[int] = 1,
    sizes: Sequence[int] = (1, 4, 16, 64),
) -> Callable:
    """`fn(*args)` that computes only the rows that are not in `results`, and keeps those.

    Of a batch of 32 sentences of which 28 are known 4 are computed. A row's key is a hash of the
    program of `fn`, the versions of jax, jaxlib and jaxmem, the kind of device, all other arrays,
    and the bytes of the row, so nothing is found for other weights or another function. The program
    is traced once for each shape of a row. A JAX array is hashed once, as long as it lives; a NumPy
    array, which may change, at each call: keep weights in JAX arrays.

    Rows that must be computed are padded to one of `sizes`, so that few programs are compiled. What
    a row's result is in the last bits may depend on the size of the batch that it was computed in:
    give one size where that matters.

    Args:
        fn: a pure function of arrays and trees of them, which gives one result for each row.
        results: where results are kept; a codec makes them smaller and rounds them, the first
            answer like later ones.
        on: the arguments (an int, or several) whose arrays have rows as their first axis.
        sizes: the numbers of rows for which programs are compiled.

    Raises:
        ValueError: when it is called: `fn` has side effects or calls back to Python, its results
            do not have one entry for each row, or a row's result depends on other rows.
        TypeError: when it is called: an argument is neither an array nor a number, or is traced.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> results = jm.Reuse(memory=1_000_000)
        >>> embed = jm.reuse(lambda w, x: jnp.tanh(x @ w), results, on=1)
        >>> w, x = jnp.eye(3), jnp.arange(12.0).reshape(4, 3)
        >>> embed(w, x[:3]).shape, embed(w, x).shape  # the second call computes one row
        ((3, 3), (4, 3))
        >>> results.stats().hits, results.stats().misses
        (3, 4)
    """
    if not isinstance(results, Reuse):
        raise TypeError(f"reuse: results is a {type(results).__name__}, expected a Reuse")
    on = (on,) if isinstance(on, int) else tuple(on)
    if not on or min(on) < 0:
        raise ValueError(f"reuse: on is {on}, expected positions of arguments, from 0")
    programs: dict[Any, _RowProgram] = {}

    @functools.wraps(fn)
    def reused(*args: Any) -> Any:
        if max(on) >= len(args):
            raise ValueError(f"reuse: on is {on}, but there are {len(args)} arguments")
        leaves, tree = jax.tree.flatten(args)
        counts = [jax.tree.structure(argument).num_leaves for argument in args]
        by_row = [i in on for i, count in enumerate(counts) for _ in range(count)]
        _check(leaves, by_row)
        rows = [np.asarray(x) for x, flag in zip(leaves, by_row) if flag]
        kinds = tuple(map(_kind, leaves, by_row))
        if (tree, kinds) not in programs:
            programs[tree, kinds] = _RowProgram(fn, tree, tuple(by_row), tuple(sizes))
        return programs[tree, kinds](results, leaves, rows)

    return reused


@dataclasses.dataclass(eq=False)
class _RowProgram:
    """`fn` for one shape of a row and of the other arguments."""

    fn: Callable
    tree: Any  # structure of the arguments
    by_row: tuple[bool, ...]  # of each of their arrays
    sizes: tuple[int, ...]
    compiled: dict[int, Callable] = dataclasses.field(default_factory=dict)
    identity: bytes = b""
    structure: Any = None  # of the result
    is_checked: bool = False

    def __call__(self, results: Reuse, leaves: list, rows: list[np.ndarray]) -> Any:
        # 1. What identifies each row; a row that comes twice is computed once.
        self.identity = self.identity or self._identified(leaves)
        prefix = hashlib.blake2b(self.identity + bytes(self.by_row))
        for x, flag in zip(leaves, self.by_row):
            prefix.update(b"" if flag else _fingerprint(x))
        keys = [_row_key(prefix, rows, i) for i in range(len(rows[0]))]
        found = {key: results.get(key) for key in dict.fromkeys(keys)}

        # 2. The rows that are not known, in as few runs as the largest size allows.
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = [first[key] for key, result in found.items() if result is None]
        for start in range(0, len(missing), self.sizes[-1]):
            chunk = missing[start : start + self.sizes[-1]]
            outs, seconds = self._run(leaves, [x[chunk] for x in rows])
            for n, i in enumerate(chunk):
                result = [x[n] for x in outs]
                found[keys[i]] = results.put(keys[i], result, seconds=seconds / len(chunk))

        # 3. The results in the order of the rows.
        columns = zip(*(found[key] for key in keys))
        return self.structure.unflatten([jnp.asarray(np.stack(column)) for column in columns])

    def _identified(self, leaves: list) -> bytes:
        """The hash of the program and of what computes it; also sets `structure`."""
        traced = self._traced(leaves, 2)
        names = {eqn.primitive.name for eqn in equations(traced.jaxpr.jaxpr.eqns)}
        called = sorted(name for name in names if "callback" in name or "debug" in name)
        if called or traced.jaxpr.effects:
            what = ", ".join(called) or ", ".join(map(str, traced.jaxpr.effects))
            raise ValueError(f"reuse: fn has {what}, expected a pure function without callbacks")
        shapes = jax.tree.leaves(traced.out_info)
        if not shapes or any(x.shape[:1] != (2,) for x in shapes):
            given = [x.shape for x in shapes]
            raise ValueError(f"reuse: fn gives {given} for 2 rows, expected 2 entries in each")
        self.structure = jax.tree.structure(traced.out_info)
        device = jax.local_devices()[0]
        versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "jaxmem")]
        more = (versions, device.platform, device.device_kind)
        flags = os.environ.get("XLA_FLAGS"), os.environ.get("LIBTPU_INIT_ARGS")
        text = f"{more}{flags}{traced.lower().as_text()}"
        return hashlib.blake2b(text.encode()).digest()

    def _traced(self, leaves: list, size: int) -> Any:
        """`fn`, traced for `size` rows."""
        shape_of = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        shapes = [shape_of(x) if flag else x for x, flag in zip(leaves, self.by_row)]
        flat = lambda *leaves: self.fn(*self.tree.unflatten(leaves))
        return jax.jit(flat).trace(*shapes)

    def _run(self, leaves: list, rows: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        """(results of the rows, seconds that they took)."""
        n = len(rows[0])
        size = self.sizes[bisect.bisect_left(self.sizes, n)]
        self._check_rows(leaves, rows)
        padded = [np.concatenate([x, np.repeat(x[:1], size - n, 0)]) for x in rows]
        run = self._program(leaves, size)
        start = time.perf_counter()
        outs = jax.tree.leaves(run(*self._merged(leaves, padded)))
        outs = [np.asarray(x)[:n] for x in outs]
        return outs, time.perf_counter() - start

    def _program(self, leaves: list, size: int) -> Callable:
        if size not in self.compiled:
            self.compiled[size] = self._traced(leaves, size).lower().compile()
        return self.compiled[size]

    def _merged(self, leaves: list, rows: list[np.ndarray]) -> list:
        """The arguments' arrays with these rows."""
        rest = iter(rows)
        return [next(rest) if flag else x for x, flag in zip(leaves, self.by_row)]

    def _check_rows(self, leaves: list, rows: list[np.ndarray]) -> None:
        """Runs the first row beside copies of itself, and beside rows of zeros (or ones), once.

        Raises:
            ValueError: it has another result.
        """
        size = next((size for size in self.sizes if size > 1), None)
        if self.is_checked or size is None:
            return
        run, outs = self._program(leaves, size), []
        for beside in (lambda x: x, lambda x: np.full_like(x, not x.any())):
            batch = [np.concatenate([x[:1], *[beside(x[:1])] * (size - 1)]) for x in rows]
            outs.append(jax.tree.leaves(run(*self._merged(leaves, batch))))
        for pair in zip(*outs):
            one, other = (np.asarray(x)[0].astype(np.float64) for x in pair)
            if not np.allclose(one, other, 0, _TOLERANCE * np.abs(one).max(initial=0), True):
                raise ValueError(
                    "reuse: fn gives a row another result beside other rows, expected a function "
                    "that computes each row for itself"
                )
        self.is_checked = True


def _check(leaves: list, by_row: list[bool]) -> None:
    """Refuses arguments that are no arrays or numbers, and rows that do not agree."""
    for x in leaves:
        if isinstance(x, jax.core.Tracer):
            raise TypeError("reuse: an argument is traced, expected arrays: call it outside of jit")
        if not isinstance(x, np.ndarray | np.generic | jax.Array | int | float | complex):
            name = type(x).__name__
            raise TypeError(f"reuse: an argument has a {name}, expected arrays and numbers")
    for x, flag in zip(leaves, by_row):
        if flag and hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise TypeError("reuse: the rows are random keys, expected their jax.random.key_data")
    lengths = {np.shape(x)[:1] for x, flag in zip(leaves, by_row) if flag}
    if len(lengths) != 1 or not all(lengths) or lengths == {(0,)}:
        given = sorted(np.shape(x) for x, flag in zip(leaves, by_row) if flag)
        raise ValueError(f"reuse: the rows have shapes {given}, expected one or more of each alike")


def _kind(x: Any, by_row: bool) -> Any:
    """What a compiled program depends on of an array or a number, apart from how many rows."""
    if not hasattr(x, "dtype"):
        return type(x)
    return x.shape[by_row:], str(x.dtype), getattr(x, "weak_type", False), _sharding(x, by_row)


def _sharding(x: Any, by_row: bool) -> Any:
    """Where an array is. Rows go through host memory."""
    return None if by_row else getattr(x, "sharding", None)


def _row_key(prefix: Any, rows: list[np.ndarray], i: int) -> str:
    hashed = prefix.copy()
    for x in rows:
        hashed.update(x[i].tobytes())
    return hashed.hexdigest()[:64]


_HASHES: dict[int, bytes] = {}  # of the JAX arrays that are alive, by their id


def _fingerprint(x: Any) -> bytes:
    """The hash of an array or a number."""
    if id(x) in _HASHES:
        return _HASHES[id(x)]
    is_jax = isinstance(x, jax.Array)
    keys = is_jax and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(x) if keys else x)
    digest = hashlib.blake2b(
        f"{type(x).__name__ * (not is_jax)}{array.dtype}{array.shape}".encode()
    )
    digest.update(np.ascontiguousarray(array).view(np.uint8))
    if is_jax:
        _HASHES[id(x)] = digest.digest()
        weakref.finalize(x, _HASHES.pop, id(x), None).atexit = False
    return digest.digest()
