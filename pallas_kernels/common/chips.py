"""What the kernels' predictions assume of a GPU."""

import dataclasses

SECTOR = 32  # Bytes that the L2 cache deals in.


@dataclasses.dataclass(frozen=True, slots=True)
class Chip:
    """Rates, sizes and times of a GPU.

    Attributes:
      name: as `jax.Device.device_kind` has it.
      hbm: bytes a second that a copy reads and writes in device memory.
      matmul: floating-point operations a second of a large product of bfloat16.
      l2: bytes a second from the L2 cache.
      peers: bytes a second that CTAs read from the shared memory of others in their
        cluster, all together.
      clock: of a multiprocessor, in hertz.
      multiprocessors: how many there are.
      group: of these, that a cluster can lie in: of whole groups only.
      smem_bytes: shared memory of a multiprocessor.
      cta_bytes: of these, what the system takes for each CTA.
      registers: of a multiprocessor.
      meet_seconds: lost where the warpgroups of a CTA wait for one another.
      cluster_meet_seconds: lost where those of a cluster do.
      load_seconds: from a load until its data is there, from L2 or device memory.
      copy_seconds: from the start of a copy by TMA to its end.
      unit_seconds: that a warpgroup needs for the instructions of one product.
      launch_seconds: that one more kernel takes if it has next to nothing to do.
    """

    name: str
    hbm: float
    matmul: float
    l2: float
    peers: float
    clock: float
    multiprocessors: int
    group: int
    smem_bytes: int
    cta_bytes: int
    registers: int
    meet_seconds: float
    cluster_meet_seconds: float
    load_seconds: float
    copy_seconds: float
    unit_seconds: float
    launch_seconds: float

    @property
    def shared(self) -> float:
        """Bytes a second to and from shared memory: 128 each clock."""
        return 128 * self.clock * self.multiprocessors

    def clusters(self, size: int) -> int:
        """How many clusters of so many CTAs run at once, one CTA a multiprocessor."""
        if size == 1:
            return self.multiprocessors
        return self.multiprocessors // self.group * (self.group // size)

    def reordering_seconds(self, num_bytes: float) -> float:
        """How long it takes XLA to put a factor's weights in order, in a launch.

        Args:
          num_bytes: read and written.
        """
        return self.launch_seconds + num_bytes / self.hbm

    def has_room_for_two(self, smem_bytes: int, registers: int) -> bool:
        """Whether two CTAs share a multiprocessor: one computes as the other waits.

        Args:
          smem_bytes: shared memory of a CTA.
          registers: of all its threads.
        """
        fits = 2 * (smem_bytes + self.cta_bytes) <= self.smem_bytes
        return fits and 2 * registers <= self.registers


# The rates and times are assumed: no row of this project holds them yet.
H200 = Chip(
    name="NVIDIA H200",
    hbm=4.3e12,
    matmul=790e12,
    l2=5.5e12,
    peers=2.6e12,
    clock=1.7e9,
    multiprocessors=132,
    group=16,
    smem_bytes=233_472,
    cta_bytes=1024,
    registers=65_536,
    meet_seconds=0.3e-6,
    cluster_meet_seconds=0.4e-6,
    load_seconds=0.8e-6,
    copy_seconds=0.8e-6,
    unit_seconds=0.2e-6,
    launch_seconds=3e-6,
)
