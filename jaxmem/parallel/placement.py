"""placement: bytes of each weight on one device, and the fewest bytes its rule allows."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..core.arguments import MESH, SPECS, TREE, takes
from ..core.byte_counts import nbytes
from ..core.leaf import is_array
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
    spec: str  # the spec of the weight's rule
    nbytes: int
    per_device: int
    least: int  # nbytes / the number of devices that the spec names
    whole: tuple[int, ...]  # axes left undivided, because a shard would split a group or a byte

    @property
    def cost(self) -> int:
        """Bytes on each device above `least`."""
        return self.per_device - self.least


@dataclasses.dataclass(frozen=True)
class Placement:
    """The result of `placement`; `str()` of it is a table."""

    rows: tuple[Place, ...]
    devices: int

    @property
    def total(self) -> Place:
        """All weights as one; `least` is their bytes over all devices."""
        size, per_device = sum(r.nbytes for r in self.rows), sum(r.per_device for r in self.rows)
        weights = sum(math.prod(r.shape) for r in self.rows)
        return Place("total", (weights,), "", size, per_device, -(-size // self.devices), ())

    def to_json(self) -> str:
        """The rows and the total as JSON text."""
        plain = lambda row: dataclasses.asdict(row) | {"cost": row.cost}
        total = {"devices": self.devices, "total": plain(self.total)}
        return json.dumps(total | {"rows": [plain(row) for row in self.rows]}, indent=1)

    def __str__(self) -> str:
        heads = ("path", "shape", "spec", "bytes", "on each device", "cost", "left whole")
        table = [heads, *map(_cells, (*self.rows, self.total))]
        widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
        aligned = lambda i, text: f"{text:>{widths[i]}}" if 3 <= i <= 5 else f"{text:{widths[i]}}"
        return "\n".join("  ".join(map(aligned, range(len(t)), t)).rstrip() for t in table)


@takes(tree=TREE, mesh=MESH, rules=SPECS)
def placement(tree: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, P]) -> Placement:
    """The bytes that `shardings(tree, mesh, rules)` puts on each device, weight by weight.

    A leaf takes more than its share if a shard would split a group, a packed byte or a block: then
    the leaf is replicated along that axis. A scale that all columns of a row share is on each
    device that holds some of these columns.

    Raises:
        ValueError: as `shardings` says.

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
        shape = lambda x, s: is_array(x) and jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype)
        names = [name for e in spec if e for name in (e if isinstance(e, tuple) else (e,))]
        least = -(-nbytes([leaf]) // math.prod(mesh.shape[name] for name in names))
        per_device = nbytes([jax.tree.map(shape, leaf, where)])
        sizes = (nbytes([leaf]), per_device, least)
        rows.append(Place(path, tuple(getattr(leaf, "shape", ())), str(spec), *sizes, whole))
    return Placement(tuple(rows), mesh.size)


def _cells(row: Place) -> tuple[str, ...]:
    """The cells of a weight's line in the table."""
    sizes = (f"{n:,}" for n in (row.nbytes, row.per_device, row.cost))
    shape = "x".join(f"{d:,}" if len(row.shape) == 1 else str(d) for d in row.shape)
    spec = row.spec.replace("PartitionSpec", "P")
    return row.path, shape, spec, *sizes, ", ".join(map(str, row.whole))
