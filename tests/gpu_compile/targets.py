"""The GPUs that programs are compiled for, by what XLA has to know of each."""

import dataclasses

_KIB, _MIB, _GB = 1024, 1024**2, 10**9


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One model, in its vendor's figures.

    Attributes:
      name: as the driver reports it.
      capability: compute capability, (major, minor).
      cores: streaming multiprocessors.
      threads_per_core: that may be resident on one.
      fpus_per_core: f32 lanes of one.
      shared_memory_per_core: bytes of one.
      clock_ghz: boost clock.
      l2_bytes: second-level cache.
      memory_bytes: device memory.
      memory_bandwidth: bytes a second.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    threads_per_core: int
    fpus_per_core: int
    shared_memory_per_core: int
    clock_ghz: float
    l2_bytes: int
    memory_bytes: int
    memory_bandwidth: int

    @property
    def shared_memory_limit(self) -> int:
        """Bytes that one thread block may ask for; from Ampere on, the driver keeps 1 KiB."""
        kept = _KIB if self.capability >= (8, 0) else 0
        return self.shared_memory_per_core - kept

    @property
    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto, as text."""
        return _TARGET_CONFIG.format(
            gpu=self,
            major=self.capability[0],
            minor=self.capability[1],
            # sm_90a and sm_100a: what has wgmma and tcgen05, the instructions of these two alone.
            extension="ACCELERATED_FEATURES" if self.capability >= (9, 0) else "NONE",
        )


GPUS = {
    "t4": Gpu("Tesla T4", (7, 5), 40, 1024, 64, 64 * _KIB, 1.59, 4 * _MIB, 16 * _GB, 320 * _GB),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        (8, 0),
        108,
        2048,
        64,
        164 * _KIB,
        1.41,
        40 * _MIB,
        85 * _GB,
        2039 * _GB,
    ),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 1536, 128, 100 * _KIB, 2.04, 48 * _MIB, 24 * _GB, 300 * _GB),
    "h200": Gpu(
        "NVIDIA H200", (9, 0), 132, 2048, 128, 228 * _KIB, 1.98, 50 * _MIB, 151 * _GB, 4800 * _GB
    ),
    "b200": Gpu(
        "NVIDIA B200", (10, 0), 148, 2048, 128, 228 * _KIB, 1.965, 126 * _MIB, 191 * _GB, 8000 * _GB
    ),
}
TRITON_GPUS = tuple(name for name, gpu in GPUS.items() if gpu.capability >= (8, 0))

_TARGET_CONFIG = """
platform_name: "CUDA"
device_description_str: "{gpu.name}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  name: "{gpu.name}"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.l2_bytes}
  device_memory_size: {gpu.memory_bytes}
  memory_bandwidth: {gpu.memory_bandwidth}
  shared_memory_per_core: {gpu.shared_memory_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory_limit}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: {gpu.threads_per_core}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
"""
