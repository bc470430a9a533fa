"""placement: bytes of each weight on one device, beside the least that its rule asks for."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..core.leaf import nbytes
from ..core.paths import is_whole, match, paths
from .sharding import follow


@dataclasses.dataclass(frozen=True)
class Place:
    """One weight of a `Placement`; sizes are in bytes.

    Example:
        >>> Place("up", (64, 8), "P(None, 'fsdp')", 2048, 288, 256, ()).cost
        32
    """

    path: str
    shape: tuple[int, ...]
    spec: str  # what the rules ask
    nbytes: int
    per_device: int
    least: int  # nbytes over the devices that the spec names
    whole: tuple[int, ...]  # axes of the spec along which a piece would split a group or a byte

    @property
    def cost(self) -> int:
        """Bytes on each device that could not be divided as asked."""
        return self.per_device - self.least


@dataclasses.dataclass(frozen=True)
class Placement:
    """What `placement` found; `str()` is a table."""

    rows: tuple[Place, ...]
    devices: int

    @property
    def total(self) -> Place:
        """All weights as one; `least` is their bytes over all devices."""
        size, here = sum(r.nbytes for r in self.rows), sum(r.per_device for r in self.rows)
        weights = sum(math.prod(r.shape) for r in self.rows)
        return Place("total", (weights,), "", size, here, -(-size // self.devices), ())

    def to_json(self) -> str:
        """The rows and the total as JSON text."""
        plain = lambda row: dataclasses.asdict(row) | {"cost": row.cost}
        found = {"devices": self.devices, "total": plain(self.total)}
        return json.dumps(found | {"rows": [plain(row) for row in self.rows]}, indent=1)

    def __str__(self) -> str:
        heads = ("path", "shape", "spec", "bytes", "on each device", "cost", "left whole")
        table = [heads, *map(_cells, (*self.rows, self.total))]
        widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
        aligned = lambda i, text: f"{text:>{widths[i]}}" if 3 <= i <= 5 else f"{text:{widths[i]}}"
        return "\n".join("  ".join(map(aligned, range(len(t)), t)).rstrip() for t in table)


def placement(tree: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, P]) -> Placement:
    """What `shardings(tree, mesh, rules)` puts on each device, and what it costs.

    A leaf costs more than its share where a piece would split a group, a packed byte or a block,
    and is replicated along that axis; also a scale that all columns of a row share is whole on each
    device that holds some of them.

    Raises:
        ValueError: as `shardings`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> enc = {"w": jm.Int(4, group=64).encode(jnp.ones((576, 192)))}  # 9 groups
        >>> print(placement(enc, jm.mesh(fsdp=8), {"w": P("fsdp", None)}))
        path   shape    spec               bytes  on each device    cost  left whole
        w      576x192  P('fsdp', None)   58,752          58,752  51,408  0
        total  110,592                    58,752          58,752  51,408
        >>> placement(enc, jm.mesh(fsdp=8), {"w": P(None, "fsdp")}).total.cost
        0
    """
    names = paths(tree)
    chosen = match(names, dict(rules))
    rows = []
    for path, leaf in zip(names, jax.tree.leaves(tree, is_leaf=is_whole)):
        spec = chosen.get(path, P())
        where, whole = follow(mesh, leaf, spec, path)
        shape = lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype)
        given = [name for e in spec if e for name in (e if isinstance(e, tuple) else (e,))]
        asked = math.prod(mesh.shape[name] for name in given)
        size = nbytes(leaf)
        here = nbytes(jax.tree.map(shape, leaf, where))
        rows.append(Place(path, tuple(leaf.shape), str(spec), size, here, -(-size // asked), whole))
    return Placement(tuple(rows), mesh.size)


def _cells(row: Place) -> tuple[str, ...]:
    sizes = (f"{n:,}" for n in (row.nbytes, row.per_device, row.cost))
    shape = "x".join(f"{d:,}" if len(row.shape) == 1 else str(d) for d in row.shape)
    spec = row.spec.replace("PartitionSpec", "P")
    return row.path, shape, spec, *sizes, ", ".join(map(str, row.whole))
