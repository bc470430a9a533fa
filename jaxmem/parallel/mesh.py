"""mesh: the devices as a grid with named axes."""

import math
from collections.abc import Iterable, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from ..compiler.devices import target
from ..core.arguments import Kind, takes
from .axes import AXES

_DEVICES = Kind(
    "a sequence of jax.Device, or None",
    lambda x: (
        x is None
        or (isinstance(x, Iterable) and all(isinstance(device, jax.Device) for device in x))
    ),
)


@takes(devices=_DEVICES)
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
    """A mesh of the first devices. It has all six axes, so that the same rules fit any mesh.

    Axes are Auto: the compiler partitions programs, and models need no change.

    Args:
        stage: devices that runs of layers are divided over.
        data: devices that rows of a batch are divided over; weights are replicated.
        fsdp: devices that rows and weights are divided over; weights are gathered for use.
        sequence: devices that positions of a batch are divided over.
        expert: devices that stacks of experts are divided over.
        tensor: devices that weights are divided over, which are never gathered.
        devices: the devices to take; all devices of JAX by default.
        device: chips to compile for, by a name that `memory` takes; then the mesh is abstract.

    Raises:
        ValueError: an axis is below 1, the mesh is larger than the devices, or a process has no
            device in the mesh.

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
    axes = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "one device"
    count, types = math.prod(sizes.values()), dict(axis_types=(AxisType.Auto,) * len(AXES))
    if device is not None:
        compile_target = target(device)
        available = compile_target.count if compile_target else 1
    else:
        devices = jax.devices() if devices is None else devices
        available = len(devices)
    if count > available:
        several = device is None and jax.process_count() > 1
        owners = f" of {jax.process_count()} processes" if several else ""
        raise ValueError(f"a mesh of {axes} takes {count} devices, there are {available}{owners}")
    if device is not None:
        return AbstractMesh(tuple(sizes.values()), AXES, **types)
    missing = {d.process_index for d in devices} - {d.process_index for d in devices[:count]}
    if missing:
        raise ValueError(
            f"a mesh of {axes} has no device of process {min(missing)}, expected some of each of "
            f"{jax.process_count()} processes"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices[:count], **types)
