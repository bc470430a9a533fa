"""--mesh fsdp=8: a model's weights over several devices, as its layout has them."""

import dataclasses
from typing import Annotated, Any

import jax
from tyro.conf import arg

import jaxmem as jm

from ..models import Model
from ..parallel.axes import AXES
from .sizes import show

MeshOption = Annotated[
    str | None,
    arg(metavar="AXES", help='Spread weights over devices: "fsdp=8" or "fsdp=2,tensor=3".'),
]


def parse(text: str) -> jax.sharding.Mesh:
    """The mesh that `--mesh` names.

    Raises:
        ValueError: no such axis, one twice, no whole number, or more devices than there are.

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
    return jm.mesh(**axes)


def spread(model: Model, params: Any, mesh: jax.sharding.Mesh) -> tuple[Any, jm.Placement]:
    """(the params over the devices of a mesh, what lies where)."""
    rules = jm.layouts.sequence(model.config, mesh)
    where = jm.placement(params, mesh, rules)
    return jm.shard(params, jm.shardings(params, mesh, rules)), where


def spread_model(model: Model, text: str | None) -> tuple[Model, dict]:
    """The model over the mesh that `--mesh` names, and what that takes, as plain data."""
    if text is None:
        return model, {}
    mesh = parse(text)
    params, where = spread(model, model.params, mesh)
    return dataclasses.replace(model, tensors=params), as_data(text, where)


def as_data(text: str, where: jm.Placement) -> dict:
    """What a mesh takes, for `--json`."""
    return {"mesh": text, "devices": where.devices, "bytes_per_device": where.total.per_device}


def told(found: dict) -> str:
    """One line of it."""
    return f"{show(found['bytes_per_device'])} on each of {found['devices']} devices"
