"""A kernel as `benchmarks.ptx` reads one, for tests of what is made of it."""

from benchmarks import ptx

KERNEL = ptx.Kernel(
    name="body_0",
    registers=40,
    stack_bytes=0,
    spill_store_bytes=0,
    spill_load_bytes=0,
    shared_bytes=131072,
    operations={"mma.sync": 8},
    accesses={"shared load, 16 bytes": 3},
    warnings=(),
)
