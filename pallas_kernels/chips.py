"""What the kernels' predictions assume of a GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Chip:
    """Rates, sizes and times of a GPU.

    Attributes:
      name: as `jax.Device.device_kind` has it.
      hbm: bytes a second that a copy reads and writes in device memory.
      matmul: floating-point operations a second of a large product of bfloat16.
      l2: bytes a second from the L2 cache.
      clock: of a multiprocessor, in hertz.
      multiprocessors: how many there are.
      smem_bytes: shared memory of a multiprocessor.
      cta_bytes: of these, what the system takes for each CTA.
      registers: of a multiprocessor.
      meet_seconds: lost where the warpgroups of a CTA wait for one another.
      load_seconds: from a load until its data is there, from L2 or device memory.
      launch_seconds: that one more kernel takes if it has next to nothing to do.
    """

    name: str
    hbm: float
    matmul: float
    l2: float
    clock: float
    multiprocessors: int
    smem_bytes: int
    cta_bytes: int
    registers: int
    meet_seconds: float
    load_seconds: float
    launch_seconds: float

    @property
    def shared(self) -> float:
        """Bytes a second to and from shared memory: 128 each clock."""
        return 128 * self.clock * self.multiprocessors


# The rates and times are assumed: no row of this project holds them yet.
H200 = Chip(
    name="NVIDIA H200",
    hbm=4.3e12,
    matmul=790e12,
    l2=5.5e12,
    clock=1.7e9,
    multiprocessors=132,
    smem_bytes=233_472,
    cta_bytes=1024,
    registers=65_536,
    meet_seconds=0.3e-6,
    load_seconds=0.8e-6,
    launch_seconds=3e-6,
)
