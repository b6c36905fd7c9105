"""Compiles functions for an NVIDIA GPU on a machine without one, and reads the result.

XLA's CUDA compiler needs a description of the chip and some wheels, but no device and
no driver. What it makes tells which kernels run, what they need and which arrays are
rewritten, never how fast that is: XLA tries no alternatives without a device.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks import hlo, ptx
from benchmarks.units import Bytes
from pallas_kernels.common import chip as chips

DEVICE = "NVIDIA H200"
CHIP = pathlib.Path(__file__).parent / "chips" / "nvidia_h200.txtpb"


# Beside JAX; their dependencies come with them.
WHEELS = (
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "nvidia-cuda-nvcc",
    "nvidia-cuda-nvdisasm",
    "nvidia-nvvm",
)

MOSAIC_GPU = "mosaic_gpu"
_DUMP_TO = "MOSAIC_GPU_DUMP_TO"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes in the device's memory, as XLA's buffer assignment has them."""

    argument: Bytes
    output: Bytes
    temporary: Bytes
    peak: Bytes


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a function was compiled to.

    Attributes:
      launches: all that one call starts on the device.
      memory: that one call takes.
      kernels: the Mosaic GPU kernels among the launches, each listed once.
    """

    launches: tuple[hlo.Launch, ...]
    memory: Memory
    kernels: tuple[ptx.Kernel, ...]

    @property
    def num_launches(self) -> int:
        """How often a call starts anything on the device."""
        return hlo.count(self.launches)

    @property
    def moved_bytes(self) -> int:
        """Bytes that transposes and copies write in a call."""
        return hlo.moved_bytes(self.launches)

    @property
    def written_bytes(self) -> int:
        """Bytes that a call writes in all."""
        return hlo.written_bytes(self.launches)


def missing_wheels() -> tuple[str, ...]:
    """Those of `WHEELS` that are not installed."""
    return tuple(name for name in WHEELS if _version(name) is None)


def wheel_versions() -> dict[str, str]:
    """Versions of those of `WHEELS` that are installed."""
    found = {name: _version(name) for name in WHEELS}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def target() -> jax.sharding.Sharding:
    """One whole array on one `DEVICE`."""
    topology = topologies.get_topology_desc(
        "h200", platform="cuda", target_config=CHIP.read_text(), topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_for_gpu(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    options: Mapping[str, str | bool] | None = None,
) -> Facts:
    """Compiles a function for `DEVICE`.

    Wants JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and JAX_ENABLE_COMPILATION_CACHE=false in
    the environment, and on a machine with a GPU JAX_PLATFORMS=cpu.

    Args:
      function: of arrays.
      arguments: arrays or `jax.ShapeDtypeStruct`, or trees of them.
      options: of XLA's compiler.

    Returns:
      What came out.

    Raises:
      NotImplementedError: if the function raises it while it is traced.
      CompilationError: if what was traced does not compile.
    """
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target()),
        arguments,
    )
    traced = jax.jit(function).trace(*placed)
    with _dump_folder() as folder, _held_stderr() as read:
        try:
            compiled = traced.lower().compile(compiler_options=dict(options or {}))
        except Exception as error:
            message = f"{type(error).__name__}: {error}\n{read()}".strip()
            raise CompilationError(message) from error
        return facts(compiled, ptx.kernels(folder))


class CompilationError(Exception):
    """What was traced does not lower or compile; tells what the compiler printed."""


def facts(compiled: jax.stages.Compiled, kernels: tuple[ptx.Kernel, ...]) -> Facts:
    """What a compiled function launches and takes.

    Raises:
      ValueError: if it launches Mosaic GPU kernels and none was read, or the reverse;
        or XLA does not tell what memory it takes.
    """
    launches = hlo.launches(hlo.parse(compiled.as_text() or ""))
    used = any(launch.kind.startswith(MOSAIC_GPU) for launch in launches)
    if used != bool(kernels):
        raise ValueError(
            f"{len(kernels)} Mosaic GPU kernels were dumped, but the program launches "
            f"{'some' if used else 'none'}"
        )
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("XLA has no memory analysis of the program")
    return Facts(
        launches=launches,
        memory=Memory(
            argument=memory.argument_size_in_bytes,
            output=memory.output_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            peak=memory.peak_memory_in_bytes,
        ),
        kernels=kernels,
    )


@contextlib.contextmanager
def _dump_folder() -> Iterator[pathlib.Path]:
    """A folder, for the time being, that Mosaic GPU writes all its stages to.

    It finds the disassembler on the PATH.
    """
    folder = tempfile.mkdtemp(prefix="butterjax_")
    path = os.pathsep.join([*_tools(), os.environ.get("PATH", "")])
    try:
        with mock.patch.dict(os.environ, {_DUMP_TO: folder, "PATH": path}):
            yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder)


def _tools() -> list[str]:
    """The folder of NVIDIA's programs that was installed as a wheel."""
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or ()
    found = [pathlib.Path(one.locate()) for one in files if one.name == "nvdisasm"]
    return [str(path.parent) for path in found]


@contextlib.contextmanager
def _held_stderr() -> Iterator[Callable[[], str]]:
    """Holds back what is written to the standard error, by C code too.

    What it gives reads that. Mosaic GPU complains there of each kernel that it cannot
    disassemble.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:

        def read() -> str:
            held.seek(0)
            return held.read().decode(errors="replace")

        os.dup2(held.fileno(), 2)
        try:
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)


def kernel_problems(
    found: Facts,
    *,
    max_launches: int | None,
    weight_bytes: int | None,
    alone: bool = False,
) -> tuple[str, ...]:
    """What is wrong with a program that is meant to be all hand-written kernels.

    XLA may put the weights in order for some of them, but never rewrite x or y.

    Args:
      found: what was compiled.
      max_launches: how often a call may start kernels, None where that is not known.
      weight_bytes: of all weights: no transpose or copy may write more. None where
        XLA has work of its own to do.
      alone: whether kernels read the weights where they are, so that nothing else is
        launched.

    Returns:
      One sentence each; empty if all is well.
    """
    problems = []
    if not found.kernels:
        problems.append("there is no Mosaic GPU kernel in it")
    for kernel in found.kernels:
        stored, loaded = kernel.spill_store_bytes, kernel.spill_load_bytes
        if stored or loaded:
            problems.append(
                f"kernel {kernel.name} spills: each thread stores {stored} bytes and "
                f"loads {loaded}"
            )
        problems += [f"kernel {kernel.name}: {line}" for line in kernel.warnings]
        problems += _clusters_without_room(kernel)
    ours = [one for one in found.launches if one.kind.startswith(MOSAIC_GPU)]
    if max_launches is not None and hlo.count(ours) > max_launches:
        names = ", ".join(launch.name for launch in ours)
        problems.append(
            f"{hlo.count(ours)} kernel launches, more than {max_launches}: {names}"
        )
    problems += [
        f"{launch.name} only transposes or copies: {launch.moved_bytes} bytes"
        for launch in found.launches
        if weight_bytes is not None and launch.moved_bytes > weight_bytes
    ]
    problems += [
        f"{launch.name} is launched beside the kernels, and writes "
        f"{launch.written_bytes} bytes"
        for launch in found.launches
        if alone and launch not in ours
    ]
    return tuple(problems)


def _clusters_without_room(kernel: ptx.Kernel) -> list[str]:
    """Whether clusters of a kernel wait for others to end, as they do not all fit."""
    grid = kernel.grid
    if grid is None or grid.cluster == 1:
        return []
    chip = chips.load(DEVICE)
    registers = kernel.registers * grid.threads
    each = chip.ctas_per_multiprocessor(kernel.shared_bytes, registers)
    room = chip.resident(grid.cluster, each)
    clusters = grid.ctas // grid.cluster
    if clusters <= room:
        return []
    return [
        f"kernel {kernel.name} launches {clusters} clusters of {grid.cluster}, of "
        f"which {room} run at once"
    ]
