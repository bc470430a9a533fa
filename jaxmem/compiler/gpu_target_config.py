"""GpuTargetConfig: a GPU as XLA's compiler wants it described (GpuTargetConfigProto).

With this text the compiler needs no GPU in the machine.
"""

import dataclasses

_SHARED_LIMITS = {  # limits that are equal on all listed GPUs
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
class GpuTargetConfig:
    """Figures of one GPU that only XLA's GPU compiler reads; a core is a streaming multiprocessor.

    Example:
        >>> t4 = GpuTargetConfig("Tesla T4", (7, 5), 40, 65536, 1024, 64, 4, 1.59)
        >>> [line for line in t4.text(15 * 2**30, 320e9).splitlines() if "core_count" in line]
        ['  core_count: 40']
    """

    name: str
    compute_capability: tuple[int, int]  # (major, minor)
    cores: int
    shared_memory: int  # bytes per core
    threads: int  # per core, at most
    float_units: int  # per core
    l2_mib: int
    clock_ghz: float

    def text(self, memory: int, bandwidth: float) -> str:
        """The proto in text format, for a GPU of `memory` bytes and `bandwidth` bytes a second."""
        major, minor = self.compute_capability
        reserved = 1024 if major > 7 else 0  # bytes of shared memory that CUDA takes per block
        info = _SHARED_LIMITS | {
            "core_count": self.cores,
            "shared_memory_per_core": self.shared_memory,
            "shared_memory_per_block_optin": self.shared_memory - reserved,
            "threads_per_core_limit": self.threads,
            "fpus_per_core": self.float_units,
            "memory_bandwidth": int(bandwidth),
            "l2_cache_size": self.l2_mib * 2**20,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": memory,
        }
        lines = [f"  {name}: {value}" for name, value in info.items()]
        lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
        versions = "dnn_version_info { major: 9 minor: 10 patch: 2 }"
        name = f'platform_name: "CUDA"\ndevice_description_str: "{self.name}"'
        return "\n".join(["gpu_device_info {", *lines, "}", versions, name])
