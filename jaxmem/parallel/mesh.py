"""mesh: the devices as a grid with named axes."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from ..compiler.devices import target
from .axes import AXES


def mesh(
    *,
    stage: int = 1,
    data: int = 1,
    fsdp: int = 1,
    sequence: int = 1,
    expert: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    device: str | None = None,
) -> Mesh | AbstractMesh:
    """A mesh of the first devices with all six axes, most of length 1, so that rules fit any mesh.

    Rows of a batch lie over `data` and `fsdp`, its positions over `sequence`; weights over `fsdp`
    (gathered where they are used) and `tensor` (never gathered); stacks of experts over `expert`,
    runs of layers over `stage`. Axes are Auto: the compiler partitions, models need no change.

    Args:
        devices: all that there are by default.
        device: instead of devices that are here, chips to compile for, as `memory` takes it;
            then the mesh is abstract.

    Raises:
        ValueError: an axis below 1, a mesh larger than the devices, or one without any device of
            some process.

    Example:
        >>> mesh(fsdp=4, tensor=2).shape["fsdp"]
        4
        >>> mesh(fsdp=64, tensor=4, device="tpu v5e:16x16").size
        256
    """
    sizes = dict(zip(AXES, (stage, data, fsdp, sequence, expert, tensor)))
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"the mesh has {name}={size}, expected at least 1")
    asked = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "one device"
    count, how = math.prod(sizes.values()), dict(axis_types=(AxisType.Auto,) * len(AXES))
    if device is not None:
        on = target(device)
        there = on.count if on else 1
    else:
        devices = jax.devices() if devices is None else devices
        there = len(devices)
    if count > there:
        of = f" of {n} processes" if device is None and (n := jax.process_count()) > 1 else ""
        raise ValueError(f"a mesh of {asked} takes {count} devices, there are {there}{of}")
    if device is not None:
        return AbstractMesh(tuple(sizes.values()), AXES, **how)
    missing = {d.process_index for d in devices} - {d.process_index for d in devices[:count]}
    if missing:
        raise ValueError(
            f"a mesh of {asked} has no device of process {min(missing)}, expected some of each of "
            f"{jax.process_count()} processes"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices[:count], **how)
