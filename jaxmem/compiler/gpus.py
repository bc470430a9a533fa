"""target_config: a GPU that is not here, described as its compiler wants it (GpuTargetConfigProto).

Figures are of NVIDIA's architecture papers and the CUDA programming guide's table of compute
capabilities: cores, shared memory of a core, threads of a core, L2 in MiB, GHz.
"""

import dataclasses

from .devices import GPUS

_LIMITS = {  # what every one of them has
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}


@dataclasses.dataclass(frozen=True)
class _Card:
    name: str
    capability: tuple[int, int]
    cores: int
    shared: int  # bytes of a core
    threads: int
    fpus: int
    l2: int
    ghz: float


_CARDS = {
    "t4": _Card("Tesla T4", (7, 5), 40, 65536, 1024, 64, 4, 1.59),
    "l4": _Card("NVIDIA L4", (8, 9), 58, 102400, 1536, 128, 48, 2.04),
    "a100": _Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 167936, 2048, 64, 40, 1.41),
    "h100": _Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 233472, 2048, 128, 50, 1.98),
    "b200": _Card("NVIDIA B200", (10, 0), 148, 233472, 2048, 128, 126, 1.965),
}


def target_config(gpu: str) -> str:
    """The text of the description of one of `chips.GPUS`.

    Example:
        >>> [line for line in target_config("h100").splitlines() if "core_count" in line]
        ['  core_count: 132']
    """
    card, chip = _CARDS[gpu], GPUS[gpu]
    info = _LIMITS | {
        "core_count": card.cores,
        "shared_memory_per_core": card.shared,
        "shared_memory_per_block_optin": card.shared - (1024 if card.capability[0] > 7 else 0),
        "threads_per_core_limit": card.threads,
        "fpus_per_core": card.fpus,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": card.l2 * 2**20,
        "clock_rate_ghz": card.ghz,
        "device_memory_size": chip.memory,
    }
    major, minor = card.capability
    lines = [f"  {name}: {value}" for name, value in info.items()]
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    versions = "dnn_version_info { major: 9 minor: 10 patch: 2 }"
    name = f'platform_name: "CUDA"\ndevice_description_str: "{card.name}"'
    return "\n".join(["gpu_device_info {", *lines, "}", versions, name])
