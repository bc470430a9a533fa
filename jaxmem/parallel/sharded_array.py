"""ShardedArray: an encoded leaf that each device multiplies by its own shard, under `shard_map`.

y = Σ over devices of (columns of x) · (rows of a shard). A product with an encoded leaf loops over
rows, gathers groups and may be a kernel: a partitioner would gather the whole weight for it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ..core.byte_counts import nbytes
from ..core.matrix_leaf import MatrixLeaf, MatrixLeafWrapper
from ..core.traced_mesh import mesh_of
from .axes import AXES, batch_spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedArray(MatrixLeafWrapper):
    """A leaf whose rows and columns may be divided over axes of the mesh that its arrays are on.

    On a mesh axis that divides the batch too (`fsdp`), the packed shards of one layer are gathered
    for the time of the product. On other axes (`tensor`) they stay, and sums over columns are added
    over devices. Without a mesh the product is that of the leaf inside.
    """

    inner: Any
    rows_over: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))
    columns_over: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))
    stack_over: tuple[tuple[str, ...], ...] = dataclasses.field(metadata=dict(static=True))

    def stack_mesh_axes(self, axis):
        names = self.stack_over[axis] if -axis <= len(self.stack_over) else ()
        mesh = mesh_of(self.inner)
        return tuple(n for n in names if mesh and mesh.shape.get(n, 1) > 1) or None

    def product(self, x, precision=None):
        moved = 4 * (x.size + x.size // max(x.shape[-1], 1) * self.fold.n)
        mesh, batch, shards = self._shards(x.shape[:-1], moved)
        if shards is None:
            return self.inner.product(x, precision)

        def local(x, *arrays):
            return lax.psum(shards.leaf(arrays).product(x, precision), shards.columns)

        x_spec, y_spec = P(*batch, shards.columns or None), P(*batch, shards.rows or None)
        return _mapped(local, mesh, (x_spec, *shards.specs), y_spec)(
            x, *jax.tree.leaves(self.inner)
        )

    def take_rows(self, index):
        mesh, batch, shards = self._shards(index.shape, 4 * index.size * self.fold.k)
        if shards is None:
            return self.inner.take_rows(index)

        def local(index, *arrays):
            leaf = shards.leaf(arrays)
            start = lax.axis_index(shards.rows) * leaf.fold.n if shards.rows else 0
            at = index - start
            in_shard = (at >= 0) & (at < leaf.fold.n)
            rows = leaf.take_rows(jnp.clip(at, 0, leaf.fold.n - 1))
            return lax.psum(jnp.where(in_shard[..., None], rows, 0.0), shards.rows)

        y_spec = P(*batch, shards.columns or None)
        run = _mapped(local, mesh, (P(*batch), *shards.specs), y_spec)
        return run(index, *jax.tree.leaves(self.inner))

    def _shards(self, shape: tuple[int, ...], moved: int) -> tuple:
        """(mesh, spec of a batch of that shape, the shards of each device or None).

        If the `moved` bytes of activations are fewer than the weight's, the activations are
        gathered instead of the weight.
        """
        mesh = mesh_of(self.inner)
        if mesh is None:
            return None, (), None
        names = (*self.rows_over, *self.columns_over)
        batch = batch_spec(mesh, shape, without=names if moved < nbytes(self.inner) else ())
        return mesh, batch, self._divided(mesh, batch)

    def _divided(self, mesh: AbstractMesh, batch: tuple) -> "_Shards | None":
        """The shards of each device; None if a shard would split a group, a byte or a block."""
        busy = {name for entry in batch for name in (entry or ())}
        over = {
            "kept": tuple(name for name in self.rows_over if mesh.shape.get(name, 1) > 1),
            "summed": tuple(name for name in self.columns_over if mesh.shape.get(name, 1) > 1),
        }
        # Mesh axes whose shards are not gathered for the product.
        stays = {side: _before(names, busy) for side, names in over.items()}
        if not self.inner.splits_sums:
            stays["summed"] = ()
        shard, used = self.inner, self.inner  # in memory, and in the product
        arrays = jax.tree.leaves(self.inner)
        # For each array, {its axis: (mesh axes that divide it, those of them that are gathered)}.
        cut = [{} for _ in arrays]
        for side, names in over.items():
            small = _cut(shard, side, math.prod(mesh.shape[n] for n in names))
            used = _cut(used, side, math.prod(mesh.shape[n] for n in stays[side]))
            if small is NotImplemented or used is NotImplemented:
                return None
            for axes, a, b in zip(cut, *map(jax.tree.leaves, (shard, small))):
                differ = [i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n]
                axes |= {i: (names, names[len(stays[side]) :]) for i in differ}
            shard = small
        return _Shards(jax.tree.structure(used), cut, arrays, stays["kept"], stays["summed"])


@dataclasses.dataclass(frozen=True)
class _Shards:
    """The shardings of a leaf's arrays, and the leaf that a device makes of its shards."""

    structure: Any
    cut: list[dict]
    arrays: list
    rows: tuple[str, ...]  # mesh axes that divide the last axis of the result
    columns: tuple[str, ...]  # mesh axes over which the result is a partial sum

    @property
    def specs(self) -> tuple[P, ...]:
        """The specs of the leaf's arrays."""
        over = lambda axes, i: axes[i][0] if i in axes else None
        return tuple(
            P(*(over(axes, i) for i in range(a.ndim))) for axes, a in zip(self.cut, self.arrays)
        )

    def leaf(self, arrays: tuple[Array, ...]) -> MatrixLeaf:
        def gathered(a, axes):
            for i, (_, names) in axes.items():
                a = lax.all_gather(a, names, axis=i, tiled=True) if names else a
            return a

        return self.structure.unflatten(map(gathered, arrays, self.cut))


def placed(tree: Any, shardings: Any) -> Any:
    """The tree with encoded leaves as `ShardedArray`, which know the mesh axes that divide them."""
    is_folded = lambda x: isinstance(x, MatrixLeaf)
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_folded)
    where = structure.flatten_up_to(shardings)
    return structure.unflatten([_known(x, s) if is_folded(x) else x for x, s in zip(leaves, where)])


def _known(leaf: MatrixLeaf, where: Any) -> MatrixLeaf:
    if isinstance(leaf, ShardedArray):
        leaf, where = leaf.inner, where.inner
    specs = [tuple(s.spec) + (None,) * x.ndim for x, s in zip(*map(jax.tree.leaves, (leaf, where)))]
    mesh = jax.tree.leaves(where)[0].mesh
    rows, columns = (_over(leaf, specs, side, mesh) for side in ("kept", "summed"))
    first = [specs[0][i] for i in range(len(leaf.batch_shape))]
    stack = tuple(() if e is None else e if isinstance(e, tuple) else (e,) for e in first)
    used = {*rows, *columns, *(name for names in stack for name in names)}
    # A leaf that every device holds whole is one, too: a kernel cannot be partitioned.
    if used == {"stage"} or mesh.size == 1 or not {*used, *mesh.axis_names} <= set(AXES):
        return leaf
    return ShardedArray(leaf, rows, columns, stack)


def _over(leaf, specs, side, mesh) -> tuple[str, ...]:
    """The mesh axes that divide a side of the matrix: rows ("kept") or columns ("summed")."""
    for entry in {e for spec in specs for e in spec if e is not None}:
        names = entry if isinstance(entry, tuple) else (entry,)
        small = _cut(leaf, side, math.prod(mesh.shape[n] for n in names))
        if small is NotImplemented:
            continue
        for spec, a, b in zip(specs, *map(jax.tree.leaves, (leaf, small))):
            if any(m != n and e == entry for e, m, n in zip(spec, a.shape, b.shape)):
                return names
    return ()


def _cut(leaf: MatrixLeaf, side: str, parts: int) -> Any:
    if parts == 1:
        return leaf
    fold = leaf.fold.shard(side, parts)
    return fold if fold is NotImplemented else leaf.shard_matrix(fold, side, parts)


def _before(names: tuple[str, ...], busy: set[str]) -> tuple[str, ...]:
    """The names before the first busy one: shards are gathered from the innermost axis outward."""
    at = next((i for i, name in enumerate(names) if name in busy), len(names))
    return names[:at]


def _mapped(fn, mesh, in_specs, out_specs):
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
