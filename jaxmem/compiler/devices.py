"""chip: what a device's name means to its compiler, and its published peaks.

Memory is what the TPU compiler counts on (its out-of-memory messages, libtpu 0.0.42 to 0.0.52).
Peaks are of one JAX device, from the makers' pages (Google Cloud TPU system architecture; NVIDIA
data sheets, dense bf16, on T4 f16): a v2, v3 or tpu7x chip is two devices.
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Bytes of memory, and per second: flops in bf16, bytes of memory, bytes between chips.

    Example:
        >>> CHIPS["v5e"].memory / GIB, CHIPS["v5e"].seconds(197e12, 819e9, 0)
        (15.75, 1.0)
    """

    memory: int
    flops: float
    bandwidth: float
    links: float

    def seconds(self, flops: float, hbm: float, collectives: float) -> float:
        """An estimate: the slower of products and memory, then what chips say to each other."""
        return max(flops / self.flops, hbm / self.bandwidth) + collectives / self.links


def _chip(gib: float, teraflops: float, gigabytes: float, links: float) -> Chip:
    return Chip(int(gib * GIB), teraflops * 1e12, gigabytes * 1e9, links * 1e9)


CHIPS = {
    "v2": _chip(7.48, 22.5, 350, 31),
    "v3": _chip(15.48, 61.5, 450, 41),
    "v4": _chip(30.75, 275, 1228, 300),
    "v5e": _chip(15.75, 197, 819, 200),
    "v5p": _chip(95.73, 459, 2765, 600),
    "v6e": _chip(31.24, 918, 1640, 448),
    "tpu7x": _chip(94.74, 1153.5, 3690, 600),
}
GPUS = {
    "t4": _chip(15, 65, 320, 16),
    "l4": _chip(22.5, 121, 300, 32),
    "a100": _chip(79, 312, 2039, 300),
    "h100": _chip(79, 989, 3350, 450),
    "b200": _chip(178, 2250, 8000, 900),
}
_KNOWN = (
    f"'cpu', 'here', 'tpu CHIP:TOPOLOGY' with CHIP one of {', '.join(CHIPS)}, as 'tpu v5e:1x1', or "
    f"'gpu NAME' with NAME one of {', '.join(GPUS)}"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for: the chip, how many, and how the compiler names them."""

    chip: Chip
    count: int
    platform: str  # "tpu" or "cuda"
    topology: str
    options: dict


def target(device: str) -> Target | None:
    """What a device's name means; None for the CPU, and "here", which is asked itself.

    Raises:
        ValueError: no such device.

    Example:
        >>> target("tpu v5e:2x4").count, target("gpu h100x8").topology, target("cpu")
        (8, '1x1x8', None)
    """
    if device in ("cpu", "here"):
        return None
    if (found := re.fullmatch(r"gpu ([a-z]+\d+)(?:x([1-9]\d*))?", device)) and found[1] in GPUS:
        count = int(found[2] or 1)
        return Target(GPUS[found[1]], count, "cuda", f"1x1x{count}", {"gpu": found[1]})
    found = re.fullmatch(r"tpu (\w+):([1-9]\d*(?:x[1-9]\d*){1,2})(?:x(\d+) slices)?", device)
    if not found or found[1] not in CHIPS:
        raise ValueError(f"unknown device {device!r}; expected {_KNOWN}")
    sides = [int(n) for n in found[2].split("x")]
    options = {"chips_per_host_bounds": [min(2, sides[0]), min(2, sides[1]), 1]}
    if found[1] == "v4":
        options["chip_config_name"] = "megacore"
    slices = int(found[3] or 1)
    if slices > 1:
        options["num_slices"] = slices
    count = math.prod(sides) * slices * (2 if found[1] in ("v2", "v3", "tpu7x") else 1)
    return Target(CHIPS[found[1]], count, "tpu", f"{found[1]}:{found[2]}", options)
