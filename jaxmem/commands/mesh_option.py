"""--mesh fsdp=8: a model's weights sharded over several devices by its layout."""

import dataclasses
from typing import Annotated, Any

import jax
from tyro.conf import arg

from ..models import Model
from ..parallel import layouts
from ..parallel.axes import AXES
from ..parallel.mesh import mesh as mesh_of
from ..parallel.placement import Placement, placement
from ..parallel.sharding import shard, shardings
from .sizes import show

MeshOption = Annotated[
    str | None,
    arg(metavar="AXES", help='Spread weights over devices: "fsdp=8" or "fsdp=2,tensor=3".'),
]


def parse(text: str) -> jax.sharding.Mesh:
    """The mesh that `--mesh` names.

    Raises:
        ValueError: `text` names an unknown axis, an axis twice or no whole number, or needs more
            devices than there are.

    Example:
        >>> dict(parse("fsdp=2,tensor=3").shape)["tensor"]
        3
    """
    axes = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in axes or not size.isdecimal():
            raise ValueError(f"--mesh {text!r}: expected {', '.join(AXES)}, each once, as fsdp=8")
        axes[name] = int(size)
    return mesh_of(**axes)


def spread(model: Model, params: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Placement]:
    """(the params sharded over a mesh, the bytes on each device)."""
    rules = layouts.sequence(model.config, mesh)
    placed = placement(params, mesh, rules)
    return shard(params, shardings(params, mesh, rules)), placed


def spread_model(model: Model, text: str | None) -> tuple[Model, dict]:
    """(the model sharded over the mesh that `--mesh` names, its bytes per device as plain data)."""
    if text is None:
        return model, {}
    mesh = parse(text)
    params, placement = spread(model, model.params, mesh)
    return dataclasses.replace(model, tensors=params), as_data(text, placement)


def as_data(text: str, placement: Placement) -> dict:
    """The mesh, its devices and the bytes on each, as plain data for `--json`."""
    return {
        "mesh": text,
        "devices": placement.devices,
        "bytes_per_device": placement.total.per_device,
    }


def mesh_line(places: dict) -> str:
    """One line that says how many bytes each device holds."""
    return f"{show(places['bytes_per_device'])} on each of {places['devices']} devices"
