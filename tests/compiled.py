"""Compiles a kernel for an H200 and runs what came out on the CPU.

Needs XLA's CUDA compiler, and the environment that `benchmarks.aot` asks for.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax._src.lib.mlir import ir
from jax.experimental.mosaic.gpu import core

from benchmarks import aot
from tests import alignment
from tests.ptx_machine import Cta, Program, TensorMap, run_cluster


@dataclasses.dataclass(frozen=True)
class _Map:
    """A `TensorMap` without the array, but its number among the kernel's."""

    array: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


@dataclasses.dataclass(frozen=True)
class Launch:
    """A compiled kernel.

    Attributes:
      program: its PTX.
      grid: CTAs.
      cluster: CTAs of a cluster.
      threads: of a CTA.
      maps: what TMA copies, in the order of their descriptors.
    """

    program: Program
    grid: int
    cluster: int
    threads: int
    maps: tuple[_Map, ...]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the banks of shared memory took, all CTAs together, without TMA.

    Attributes:
      wavefronts: how often they were asked.
      fewest: how often without conflicts.
    """

    wavefronts: int
    fewest: int


def compiled(function: Callable[..., Any], *args: Any) -> Launch:
    """The one kernel of a function of arrays, or of shapes and dtypes."""
    shapes = [
        jax.ShapeDtypeStruct(np.shape(one), one.dtype, sharding=aot.target())
        for one in args
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"MOSAIC_GPU_DUMP_TO": folder}),
        _launches() as found,
    ):
        jax.jit(function).trace(*shapes).lower().compile()
        (path,) = pathlib.Path(folder).glob("*.ptx")
        program = Program.parse(path.read_text())
    (launch,) = found
    return dataclasses.replace(launch, program=program)


def run(
    launch: Launch, arrays: Sequence[np.ndarray], *, pointers: Sequence[int], seed: int
) -> Counts:
    """Runs all CTAs, clusters one after another, and fills the outputs.

    Args:
      launch: the kernel.
      arrays: its inputs and its outputs, as it takes them.
      pointers: which of them threads themselves read or write, in the order of the
        kernel's parameters.
      seed: of the order in which warps and copies take turns.
    """
    maps = [
        TensorMap(arrays[one.array], one.sizes, one.strides, one.box, one.swizzle)
        for one in launch.maps
    ]
    wavefronts = fewest = 0
    for first in range(0, launch.grid, launch.cluster):
        ctas = [
            Cta(
                launch.program,
                index=first + rank,
                rank=rank,
                threads=launch.threads,
                arrays=arrays,
                pointers=pointers,
                maps=maps,
            )
            for rank in range(launch.cluster)
        ]
        run_cluster(ctas, seed)
        wavefronts += sum(cta.wavefronts for cta in ctas)
        fewest += sum(cta.fewest for cta in ctas)
    return Counts(wavefronts, fewest)


@contextlib.contextmanager
def _launches() -> Iterator[list[Launch]]:
    """Collects the kernels that are lowered inside, without their programs."""
    found: list[Launch] = []
    lower = core._mosaic_gpu_lowering_rule

    def collect(*args: Any, module: ir.Module, **kwargs: Any) -> Any:
        found.append(_launch(module))
        return lower(*args, module=module, **kwargs)

    with mock.patch.object(core, "_mosaic_gpu_lowering_rule", collect):
        yield found


def _launch(module: ir.Module) -> Launch:
    reader = alignment.Reader()
    maps: list[_Map] = []
    sizes: list[int] = []
    for function in module.body:
        for block in function.regions[0] if function.regions else ():
            for view in block:
                one = view.operation
                if one.name == "func.call" and "tma_desc" in str(
                    one.attributes["callee"]
                ):
                    maps.append(_map(one, reader))
                elif one.name == "gpu.launch":
                    sizes = _sizes(one, reader)
    grid, threads, cluster = (int(np.prod(sizes[n : n + 3])) for n in (0, 3, 6))
    return Launch(Program((), {}, ()), grid, cluster, threads, tuple(maps))


def _sizes(launch: ir.Operation, reader: alignment.Reader) -> list[int]:
    """Of the grid, of a CTA and of a cluster, three each."""
    segments = list(ir.DenseI32ArrayAttr(launch.attributes["operandSegmentSizes"]))
    numbers = [reader.of(value).exact for value in list(launch.operands)[segments[0] :]]
    has_clusters = segments[7] > 0
    return [n or 0 for n in numbers[: 9 if has_clusters else 6]] + [1] * (
        0 if has_clusters else 3
    )


def _map(call: ir.Operation, reader: alignment.Reader) -> _Map:
    """Of a call that makes a descriptor of TMA."""
    _, base, _, rank, sizes, strides, swizzle, box = call.operands
    assert reader.of(base).residue == 0, "a tensor begins within an array"
    count = reader.of(rank).exact

    def numbers(array: ir.Value) -> tuple[int, ...]:
        """What was stored in an array of the host's."""
        found = {}
        for use in array.uses:
            place = use.owner
            if place.operation.name != "llvm.getelementptr":
                continue
            indices = place.operation.attributes["rawConstantIndices"]
            (index,) = ir.DenseI32ArrayAttr(indices)
            (stored,) = (
                user.owner.operation.operands[0]
                for user in place.operation.results[0].uses
                if user.owner.operation.name == "llvm.store"
            )
            found[index] = reader.of(stored).exact
        return tuple(found[n] for n in range(count))

    return _Map(
        _number_of(base),
        numbers(sizes),
        numbers(strides),
        numbers(box),
        reader.of(swizzle).exact or 16,
    )


def _number_of(value: ir.Value) -> int:
    """The argument of the kernel that an address or a memref is of."""
    key = "mosaic_gpu.from_kernel_arg_idx"
    while key not in (operation := value.owner.operation).attributes:
        value = operation.operands[0]
    return ir.IntegerAttr(operation.attributes[key]).value
