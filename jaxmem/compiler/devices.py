"""DEVICES, target: published peaks of each TPU and GPU, and what a device's name means.

Memory of a TPU is what its compiler counts on (its out-of-memory messages, libtpu 0.0.42 to
0.0.52). Peaks are per JAX device, from the makers' pages: Google Cloud TPU system architecture;
NVIDIA data sheets (dense bf16; f16 for the T4), architecture papers, and the CUDA programming
guide's table of compute capabilities.
"""

import dataclasses
import math
import re

from .gpu_target_config import GpuTargetConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One JAX device: bytes of memory, and peaks per second.

    Example:
        >>> DEVICES["v5e"].memory / GIB, DEVICES["v5e"].seconds(197e12, 819e9, 0)
        (15.75, 1.0)
    """

    memory: int  # bytes
    flops: float  # per second, in bf16
    bandwidth: float  # bytes per second between the device and its own memory
    links: float  # bytes per second between this device and the others
    per_chip: int = 1  # JAX devices on one chip
    gpu: GpuTargetConfig | None = None  # None for a TPU

    def seconds(self, flops: float, hbm: float, collectives: float) -> float:
        """Estimated seconds of one run: the slower of products and memory, then collectives.

        `hbm` are bytes of main memory that are read and written, `collectives` bytes received.
        """
        return max(flops / self.flops, hbm / self.bandwidth) + collectives / self.links


def _device(
    gib: float,
    teraflops: float,
    gigabytes: float,
    links: float,
    per_chip: int = 1,
    gpu: GpuTargetConfig | None = None,
) -> Device:
    """A `Device` from GiB of memory, teraflops, and GB per second of memory and of links."""
    return Device(int(gib * GIB), teraflops * 1e12, gigabytes * 1e9, links * 1e9, per_chip, gpu)


_T4 = GpuTargetConfig("Tesla T4", (7, 5), 40, 65536, 1024, 64, 4, 1.59)
_L4 = GpuTargetConfig("NVIDIA L4", (8, 9), 58, 102400, 1536, 128, 48, 2.04)
_A100 = GpuTargetConfig("NVIDIA A100-SXM4-80GB", (8, 0), 108, 167936, 2048, 64, 40, 1.41)
_H100 = GpuTargetConfig("NVIDIA H100 80GB HBM3", (9, 0), 132, 233472, 2048, 128, 50, 1.98)
_B200 = GpuTargetConfig("NVIDIA B200", (10, 0), 148, 233472, 2048, 128, 126, 1.965)

DEVICES = {
    "v2": _device(7.48, 22.5, 350, 31, per_chip=2),
    "v3": _device(15.48, 61.5, 450, 41, per_chip=2),
    "v4": _device(30.75, 275, 1228, 300),
    "v5e": _device(15.75, 197, 819, 200),
    "v5p": _device(95.73, 459, 2765, 600),
    "v6e": _device(31.24, 918, 1640, 448),
    "tpu7x": _device(94.74, 1153.5, 3690, 600, per_chip=2),
    "t4": _device(15, 65, 320, 16, gpu=_T4),
    "l4": _device(22.5, 121, 300, 32, gpu=_L4),
    "a100": _device(79, 312, 2039, 300, gpu=_A100),
    "h100": _device(79, 989, 3350, 450, gpu=_H100),
    "b200": _device(178, 2250, 8000, 900, gpu=_B200),
}
TPUS = [name for name, device in DEVICES.items() if not device.gpu]
GPUS = [name for name, device in DEVICES.items() if device.gpu]
_KNOWN = (
    f"'cpu', 'here', 'tpu CHIP:TOPOLOGY' with CHIP one of {', '.join(TPUS)}, as 'tpu v5e:1x1', or "
    f"'gpu NAME' with NAME one of {', '.join(GPUS)}"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for: which device, how many of them, and how the compiler names them."""

    device: Device
    count: int
    platform: str  # "tpu" or "cuda"
    topology: str
    options: dict  # further arguments of `get_topology_desc`


def target(device: str) -> Target | None:
    """The target that a device's name stands for; None for "cpu" and for "here".

    Raises:
        ValueError: `device` is no known name.

    Example:
        >>> target("tpu v5e:2x4").count, target("gpu h100x8").topology, target("cpu")
        (8, '1x1x8', None)
    """
    if device in ("cpu", "here"):
        return None
    match = re.fullmatch(r"gpu ([a-z]+\d+)(?:x([1-9]\d*))?", device)
    if match and match[1] in GPUS:
        return _gpu_target(DEVICES[match[1]], int(match[2] or 1))
    match = re.fullmatch(r"tpu (\w+):([1-9]\d*(?:x[1-9]\d*){1,2})(?:x(\d+) slices)?", device)
    if not match or match[1] not in TPUS:
        raise ValueError(f"unknown device {device!r}; expected {_KNOWN}")
    sides = [int(side) for side in match[2].split("x")]
    return _tpu_target(match[1], sides, slices=int(match[3] or 1))


def _gpu_target(gpu: Device, count: int) -> Target:
    """`count` GPUs in one host."""
    topology = f"1x1x{count}"
    options = {"target_config": gpu.gpu.text(gpu.memory, gpu.bandwidth), "topology": topology}
    return Target(gpu, count, "cuda", topology, options)


def _tpu_target(name: str, sides: list[int], slices: int) -> Target:
    """`slices` grids of chips, each with these sides."""
    options = {"chips_per_host_bounds": [min(2, sides[0]), min(2, sides[1]), 1]}
    if name == "v4":
        options["chip_config_name"] = "megacore"  # one JAX device per chip
    if slices > 1:
        options["num_slices"] = slices
    count = math.prod(sides) * slices * DEVICES[name].per_chip
    topology = f"{name}:{'x'.join(map(str, sides))}"
    return Target(DEVICES[name], count, "tpu", topology, options)
