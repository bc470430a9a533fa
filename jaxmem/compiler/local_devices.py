"""local_device: the name, in the words of `target`, of the devices that JAX has here."""

import jax

from .devices import GPUS

_TPU_KINDS = {  # what JAX calls a chip
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def local_device(count: int | None = None) -> str:
    """The name of `count` of JAX's devices, or of one of them.

    Raises:
        ValueError: JAX's device is none that `target` knows, or `count` TPUs are not all of them.

    Example:
        >>> local_device()
        'cpu'
    """
    devices = jax.devices()
    first, count = devices[0], count or 1
    if first.platform == "cpu":
        return "cpu"
    kind = first.device_kind
    if first.platform == "gpu":
        known = [name for name in GPUS if name in kind.lower()]
        if known:
            return f"gpu {known[0]}" + (f"x{count}" if count > 1 else "")
    if first.platform == "tpu" and kind in _TPU_KINDS:
        if count == 1:
            return f"tpu {_TPU_KINDS[kind]}:1x1"
        if count == len(devices):
            sides = [1 + max(device.coords[i] for device in devices) for i in range(3)]
            sides = sides if sides[2] > 1 else sides[:2]
            return f"tpu {_TPU_KINDS[kind]}:{'x'.join(map(str, sides))}"
        raise ValueError(f"{count} of {len(devices)} TPUs; a mesh takes one of them or all")
    raise ValueError(f"the device {kind!r} has no entry in DEVICES; give a recipe for it")
