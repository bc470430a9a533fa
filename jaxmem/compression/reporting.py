"""report: the bytes and the error of each weight, and the operations that decode it."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import OPTIONAL_MAPPING, TREE, takes
from ..core.byte_counts import nbytes, shape_of
from ..core.lazy import is_lazy
from ..core.leaf import decode, is_array, is_encoded, separate_shared
from ..core.paths import check_same_tree, is_whole, paths
from ..core.pictures import Picture, bars, html_table
from ..parallel.sharded_array import ShardedArray


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of a `Report`; sizes are in bytes.

    Example:
        >>> Row("up", (64, 8), "Int(bits=8)", 2048, 528, 0.004, ()).bits_per_weight
        8.25
    """

    path: str
    shape: tuple[int, ...]
    form: str  # the encoded leaf and its static fields, or the dtype of a kept one
    dense: int
    encoded: int
    error: float | None  # ‖w − ŵ‖ / ‖w‖; None if a tree is abstract
    decodes: tuple[str, ...] | None  # operations that decode the whole weight; None: uses unknown
    per_device: int | None = None  # bytes on each device; None for a weight on one device
    cost: int | None = None  # bytes on each device above an even share, from undivided arrays

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.encoded / max(math.prod(self.shape), 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `report`; `str()` is a table."""

    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """The sums over all weights, as a row without an error."""
        weights = sum(math.prod(row.shape) for row in self.rows)
        dense, encoded = sum(r.dense for r in self.rows), sum(r.encoded for r in self.rows)
        known = [r for r in self.rows if r.per_device is not None]
        spread = [sum(r.per_device for r in known), sum(r.cost for r in known)] if known else []
        return Row("total", (weights,), "", dense, encoded, None, None, *spread)

    def to_json(self) -> str:
        """The rows and the total as JSON text."""
        plain = lambda row: dataclasses.asdict(row) | {"bits_per_weight": row.bits_per_weight}
        rows = [plain(row) for row in self.rows]
        return json.dumps({"rows": rows, "total": plain(self.total)}, indent=1)

    def _table(self) -> list[tuple[str, ...]]:
        """The heads, the rows and the total as text."""
        heads = ("path", "shape", "form", "dense", "encoded", "bits/weight", "error")
        heads += ("on each device", "cost", "decodes")
        return [heads, *map(_cells, self.rows), _cells(self.total)]

    def _repr_html_(self) -> str:
        heads, *rows = self._table()
        filled = [i for i, column in enumerate(zip(*rows)) if any(column)]
        return html_table([heads[i] for i in filled], [[row[i] for i in filled] for row in rows])

    def plot(self) -> Picture:
        """A picture of the bytes of each weight, encoded and saved, with its error.

        Raises:
            ImportError: matplotlib is missing.
        """
        saved = [max(row.dense - row.encoded, 0) / 1e6 for row in self.rows]
        stacks = {"encoded": [row.encoded / 1e6 for row in self.rows], "saved": saved}
        notes = ["" if not row.error else f"error {row.error:.2g}" for row in self.rows]
        total = self.total
        title = f"{total.encoded / 1e6:,.4g} MB of {total.dense / 1e6:,.4g} MB dense"
        names = [row.path for row in self.rows]
        return bars(names, stacks, title=title, label="megabytes", notes=notes)

    def __str__(self) -> str:
        table = self._table()
        filled = [i for i, column in enumerate(zip(*table[1:])) if any(column)]
        widths = {i: max(len(line[i]) for line in table) for i in filled}
        aligned = lambda i, text: f"{text:>{widths[i]}}" if 3 <= i <= 8 else f"{text:{widths[i]}}"
        return "\n".join("  ".join(aligned(i, t[i]) for i in filled).rstrip() for t in table)


@takes(params=TREE, enc=TREE, uses=OPTIONAL_MAPPING)
def report(params: Any, enc: Any, uses: Mapping | None = None) -> Report:
    """Compares dense `params` with the encoded tree `enc`, one layer of each weight at a time.

    With `uses`, the report lists the operations that decode a whole weight because its encoded form
    has no faster way. If a tree is abstract, errors are left out. For a tree on many devices the
    report gives the bytes on each device, and how far they are above an even share.

    Raises:
        ValueError: the paths or the shapes of the trees differ.

    Example:
        >>> import jax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (64, 32))}
        >>> print(jm.report(params, {"w": jm.Int(8).encode(params["w"])}))
        path   shape  form                              dense  encoded  bits/weight   error
        w      64x32  Int(zero=None, bits=8, group=64)  8,192    2,112         8.25  0.0061
        total  2,048                                    8,192    2,112         8.25
    """
    names, encoded_names = paths(params), paths(enc)
    if names != encoded_names:
        other = sorted(set(names) ^ set(encoded_names)) or names
        raise ValueError(f"the trees differ at {other[0]!r}, expected the same paths")
    check_same_tree(names, uses=uses)
    leaves = jax.tree.leaves(params, is_leaf=is_whole)
    rows = []
    for path, dense, leaf in zip(names, leaves, jax.tree.leaves(enc, is_leaf=is_whole)):
        shape, other = (tuple(getattr(x, "shape", ())) for x in (dense, leaf))
        if shape != other:
            raise ValueError(f"{path} has shape {shape} and {other}, expected the same")
        rows.append(
            Row(
                path,
                shape,
                _form(leaf),
                nbytes([shape_of(dense)]),
                nbytes([shape_of(leaf)]),
                _error(dense, leaf),
                None if uses is None else _decoding(leaf, uses.get(path, ())),
                *_spread(leaf),
            )
        )
    return Report(tuple(rows))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.path,
        "x".join(f"{d:,}" if len(row.shape) == 1 else str(d) for d in row.shape),
        row.form,
        f"{row.dense:,}",
        f"{row.encoded:,}",
        f"{row.bits_per_weight:.2f}",
        "" if row.error is None else f"{row.error:.4f}",
        *("" if n is None else f"{n:,}" for n in (row.per_device, row.cost)),
        ", ".join(row.decodes or ()),
    )


def _spread(leaf) -> tuple[int, int] | tuple[()]:
    """(bytes on each device, bytes above an even share) of a leaf on many devices, else ()."""
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(leaf)]
    devices = max((s.num_devices for s in shardings if s is not None), default=1)
    if devices == 1:
        return ()
    part = lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
    per_device = nbytes(jax.tree.map(part, leaf))
    return per_device, per_device - -(-nbytes(leaf) // devices)


def _form(leaf) -> str:
    """The leaf's class with its static fields and inner leaves, or the dtype of an array.

    The class of a leaf that is no array, such as a step that is a Python int.
    """
    if isinstance(leaf, ShardedArray):
        return _form(leaf.inner)
    if not is_encoded(leaf):
        return str(leaf.dtype) if is_array(leaf) else type(leaf).__name__
    if leaf.ends:
        return ", ".join(f"[{start}:{stop}] {_form(part)}" for start, stop, part in _runs(leaf))
    fields = []
    for field in dataclasses.fields(leaf):
        value = getattr(leaf, field.name)
        if is_encoded(value):
            fields.append(f"{field.name}={_form(value)}")
        elif isinstance(value, tuple) and any(map(is_encoded, value)):
            fields.append(f"{field.name}=({', '.join(map(_form, value))})")
        elif value is None or isinstance(value, bool | int | float | str):
            fields.append(f"{field.name}={value}")
    return f"{type(leaf).__name__.removesuffix('Array')}({', '.join(fields)})"


def _runs(leaf) -> Iterator[tuple[int, int, Any]]:
    """(start, stop, stack) of each run of layers with one codec."""
    for start, stop in itertools.pairwise((0, *leaf.ends)):
        yield start, stop, leaf.layers(start, stop)


def _error(dense, leaf) -> float | None:
    """‖w − ŵ‖ / ‖w‖, one layer decoded at a time; None for abstract leaves."""
    abstract = lambda x: isinstance(x, jax.ShapeDtypeStruct)
    if any(map(abstract, jax.tree.leaves((dense, leaf), is_leaf=is_lazy))):
        return None
    if not is_encoded(leaf):
        return 0.0
    lazy = is_lazy(dense)
    if (leaf.stack or leaf.ends) and (dense.stacked if lazy else leaf.ndim > 2):
        parts = dense.parts() if lazy else dense
        slices = map(leaf.layer, range(leaf.shape[0]))
    else:
        parts, slices = [dense.load() if lazy else dense], [leaf]
    squares = [_squares(part, piece) for part, piece in zip(parts, slices)]
    error, whole = (math.fsum(float(s[i]) for s in squares) for i in (0, 1))
    return math.sqrt(error / whole) if whole else 0.0


@jax.jit
def _squares(w, leaf):
    """(‖w − ŵ‖², ‖w‖²) in f32."""
    square = lambda x: jnp.square(x.astype(jnp.float32)).sum()
    return square(w.astype(jnp.float32) - decode(leaf).astype(jnp.float32)), square(w)


def _decoding(leaf, uses) -> tuple[str, ...]:
    """The operations among `uses` for which a layer of `leaf` has no faster way than decoding."""
    parts = [part for _, _, part in _runs(leaf)] if is_encoded(leaf) and leaf.ends else [leaf]
    cannot = lambda use: any(is_encoded(part) and not _can(part, use) for part in parts)
    return tuple(dict.fromkeys(use.op for use in uses if cannot(use)))


def _can(leaf, use) -> bool:
    """Whether a layer of `leaf` computes a use without decoding the whole weight."""
    if use.op not in ("dot_general", "gather"):
        return False
    depth = min(len(leaf.stack), leaf.ndim + min(use.axes, default=-2))
    results = []

    def run(leaf, x):
        own, back = separate_shared(leaf)
        layer = back(jax.tree.map(lambda a: a[(0,) * depth], own))
        axes = tuple(a + layer.ndim for a in use.axes)
        dims = (tuple(range(1, x.ndim)), axes), ((), ())
        results.append(layer.take(x) if use.op == "gather" else layer.dot(x, dims))

    shape = (2, *(leaf.shape[a] for a in use.axes))
    jax.eval_shape(run, leaf, jax.ShapeDtypeStruct(shape, use.dtype))
    return results[0] is not NotImplemented
