"""StepLayout: the arguments of a step, laid out on a mesh by `jm.layouts` and `jm.shardings`."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..compiler.devices import target
from ..parallel import layouts
from ..parallel.axes import AXES, ROWS, batch_spec
from ..parallel.mesh import mesh as make_mesh
from ..parallel.sharded_array import placed
from ..parallel.sharding import shard, shardings, state_shardings
from .recipe import Recipe

COUNTS = ("step", "skipped")  # the scalars of a train state


def step_mesh(recipe: Recipe, mesh: Mesh | AbstractMesh | None = None) -> Mesh | AbstractMesh:
    """`mesh`, once it is known to agree with the recipe; by default the mesh the recipe names.

    The default mesh is abstract for a TPU or GPU; for "cpu" and "here" it has devices of JAX.

    Raises:
        ValueError: `mesh` is none that `jm.mesh` makes, its axes are not the recipe's, or it has
            more or fewer devices than the recipe's device.
    """
    device = target(recipe.device)
    if mesh is None:
        abstract = device or not recipe.axes
        mesh = make_mesh(**recipe.axes, device=recipe.device if abstract else None)
    if not set(AXES) <= set(mesh.shape):
        cure = ", ".join(f"{name}={size}" for name, size in recipe.axes.items())
        raise ValueError(f"the mesh has axes {tuple(mesh.shape)}, expected jm.mesh({cure})")
    axes = {name: size for name, size in mesh.shape.items() if size > 1}
    if recipe.mesh is not None and axes != recipe.axes:
        raise ValueError(f"the mesh has axes {axes}, expected the recipe's {recipe.axes}")
    if device and mesh.size != device.count:
        raise ValueError(f"a mesh of {mesh.size} devices, but {recipe.device} has {device.count}")
    return mesh


@dataclasses.dataclass(frozen=True)
class StepLayout:
    """Gives the arguments of a step their shardings. On one device all trees stay as they are.

    Weights lie as `jm.layouts.fsdp_tensor` says. Without `shared` they lie as `jm.layouts.tensor`
    says, and each device of `data` and `fsdp` holds all of them. The optimizer's state lies as
    `fsdp_tensor` says in both cases (Rajbhandari et al., 2020: ZeRO stages 3 and 1).
    """

    mesh: Mesh | AbstractMesh
    config: Any
    shared: bool

    @property
    def row_devices(self) -> int:
        """The number of devices that share the rows of a batch."""
        return math.prod(self.mesh.shape[name] for name in ROWS)

    def weights(self, params: Any) -> Any:
        """Weights, dense or encoded, abstract or concrete, with their shardings."""
        if self.mesh.size == 1:
            return params
        return self.put(params, shardings(params, self.mesh, self._rules(self.shared)))

    def state_shardings(self, state: dict, *, pairs: bool = False) -> Any:
        """The shardings of a train state {"params", "opt", "step", ...}; None on one device.

        `pairs` says that the params are LoRA pairs of the weights.
        """
        if self.mesh.size == 1:
            return None
        of_pairs = layouts.adapters if pairs else lambda rules: rules
        lay = lambda shared: shardings(state["params"], self.mesh, of_pairs(self._rules(shared)))
        counts = {name: NamedSharding(self.mesh, P()) for name in state if name in COUNTS}
        return counts | {
            "params": lay(self.shared),
            "opt": state_shardings(state["opt"], state["params"], lay(True)),
        }

    def cache_shardings(self, cache: Any, batch: int) -> Any:
        """The shardings of a KV cache of `batch` rows; None on one device."""
        if self.mesh.size == 1:
            return None
        return shardings(cache, self.mesh, layouts.cache(self.config, self.mesh, batch))

    def rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An abstract batch (rows, positions), its rows over `data` and `fsdp` if they divide."""
        if self.mesh.size == 1:
            return jax.ShapeDtypeStruct(shape, dtype)
        place = NamedSharding(self.mesh, P(*batch_spec(self.mesh, shape)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def put(self, tree: Any, places: Any) -> Any:
        """`jm.shard`, but concrete arrays stay where they are if the mesh is abstract."""
        if places is None:
            return tree
        shapes = all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))
        return (
            shard(tree, places) if shapes or isinstance(self.mesh, Mesh) else placed(tree, places)
        )

    def keep(self, tree: Any, places: Any) -> Any:
        """Results of a step, with the shardings that the step's arguments have; inside `jit`."""
        return tree if places is None else jax.lax.with_sharding_constraint(tree, places)

    def _rules(self, shared: bool) -> layouts.Rules:
        layout = layouts.fsdp_tensor if shared else layouts.tensor
        return layout(self.config, self.mesh)
