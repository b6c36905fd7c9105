"""Runs Mosaic GPU kernels on the CPU, in JAX's interpreter, and looks for races."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic_gpu.core import ClusterRefTransform
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.primitives import mma_p
from jax._src.state.types import ReshapeTransform, TransposeTransform
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from tests import tensor_core

_sums_are_cut_off = contextvars.ContextVar("sums_are_cut_off", default=False)


def _mma(acc: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    if _sums_are_cut_off.get():
        like = jax.ShapeDtypeStruct(acc.shape, acc.dtype)
        return jax.pure_callback(_multiply_add, like, acc, a, b)
    # No dot: it would wait for XLA's few threads, which warpgroups may be blocking.
    a, b = a.astype(acc.dtype), b.astype(acc.dtype)
    return acc + (a[:, :, None] * b).sum(1)


def _multiply_add(*operands: Any) -> np.ndarray:
    return tensor_core.multiply_add(*map(np.asarray, operands))


@contextlib.contextmanager
def sums_of_tensor_cores() -> Iterator[None]:
    """Kernels lowered inside sum by mma.sync as an H200 does; this takes longer."""
    token = _sums_are_cut_off.set(True)
    try:
        yield
    finally:
        _sums_are_cut_off.reset(token)


# The interpreter has no rule for mma.sync.
mlir.register_lowering(
    mma_p, mlir.lower_fun(_mma, multiple_results=False), platform="cpu"
)

_get = gpu_callbacks._get
_BLOCK = 2  # Where in the key of an allocation the CTA is.


def _get_from_peer(
    token: Any,
    mesh_location: Any,
    thread: Any,
    key: Any,
    transforms: tuple[Any, ...],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Reads from the shared memory of the CTA that `plgpu.cluster_ref` names."""
    peers = [t for t in transforms if isinstance(t, ClusterRefTransform)]
    if peers:
        key = np.array(key)
        [[key[_BLOCK]]] = [peer.idxs for peer in peers]
        transforms = tuple(t for t in transforms if t not in peers)
    transforms, view = _viewed(transforms)
    token, found = _get(token, mesh_location, thread, key, transforms, *args, **kwargs)
    return token, np.asarray(_view(np.asarray(found), view), order="C")


_swap = gpu_callbacks._swap


def _swap_view(
    token: Any,
    mesh_location: Any,
    thread: Any,
    key: Any,
    transforms: tuple[Any, ...],
    value: Any,
    mask: Any,
    **kwargs: Any,
) -> Any:
    """Writes through reshapes and transposes."""
    transforms, view = _viewed(transforms)
    if view:
        memory = gpu_callbacks._get_shared_memory()
        owner = gpu_callbacks.HostAllocationKey.from_array(key)
        shape = memory.access(owner, jax.tree.map(int, transforms)).shape
        places = _view(np.arange(np.prod(shape)).reshape(shape), view)
        straight = np.empty(shape, np.asarray(value).dtype)
        straight.reshape(-1)[places] = value
        value = straight
    token, old = _swap(
        token, mesh_location, thread, key, transforms, value, mask, **kwargs
    )
    return token, np.asarray(_view(np.asarray(old), view), order="C")


def _viewed(transforms: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What is accessed, and how it is looked at: from the first reshape on."""
    transforms = tuple(gpu_callbacks._remove_noop_transforms(transforms))
    reshapes = [isinstance(t, ReshapeTransform) for t in transforms]
    at = reshapes.index(True) if any(reshapes) else len(transforms)
    return transforms[:at], transforms[at:]


def _view(array: np.ndarray, transforms: tuple[Any, ...]) -> np.ndarray:
    for transform in transforms:
        if isinstance(transform, ReshapeTransform):
            array = array.reshape(transform.shape)
        elif isinstance(transform, TransposeTransform):
            array = array.transpose(transform.permutation)
        else:  # An index of everything.
            assert all(s.start == 0 and s.stride == 1 for s in transform.indices)
            assert transform.get_indexer_shape() == array.shape
    return array


# Nor does it know peers, though it runs the CTAs of a cluster side by side, nor
# reshapes of what is read and written.
gpu_callbacks._get = _get_from_peer
gpu_callbacks._swap = _swap_view


# It holds tiled memory without its tiles, but does not know this name for that.
gpu_callbacks.NOOP_TRANSFORMS = (*gpu_callbacks.NOOP_TRANSFORMS, compat.Untiled)


_wgmma, _read_sums = gpu_callbacks.wgmma, gpu_callbacks.wgmma_accumulator_deref
_running: dict[Any, list[tuple[Any, Any]]] = {}  # What a warpgroup's last wgmma reads.


def _wgmma_later(*, thread: Any, **kwargs: Any) -> Any:
    """Multiplies, and looks for races with what is read from now on."""
    _look_for_races(thread)
    memory = gpu_callbacks._get_shared_memory()
    _running[thread] = []
    for operand in ("a", "b"):
        key = gpu_callbacks.HostAllocationKey.from_array(
            kwargs[f"{operand}_allocation_key_as_array"]
        )
        transforms = gpu_callbacks._remove_noop_transforms(
            kwargs[f"{operand}_transforms"]
        )
        access = memory.access(key, jax.tree.map(int, transforms))
        _running[thread].append((key, access))
    _look_for_races(thread)
    return _wgmma(thread=thread, **kwargs)


def _read_sums_after(*, thread: Any, **kwargs: Any) -> Any:
    _look_for_races(thread)
    _running.pop(thread, None)
    return _read_sums(thread=thread, **kwargs)


def _look_for_races(thread: Any) -> None:
    """With what the last wgmma reads, which may do so until now."""
    memory = gpu_callbacks._get_shared_memory()
    with memory.lock:
        memory.clocks[thread].inc(memory.thread_to_vc_position(thread))
    clock = memory.get_clock(thread).async_smem_clock
    for key, access in _running.get(thread, ()):
        gpu_callbacks.get_races().check_read(thread, clock, key, access)


# It multiplies at once and looks for no races. Kernels wait for all but the newest
# wgmma, which is taken to read its operands until there is another one.
gpu_callbacks.wgmma = _wgmma_later
gpu_callbacks.wgmma_accumulator_deref = _read_sums_after


@contextlib.contextmanager
def interpreter() -> Iterator[None]:
    """Kernels traced inside run in the interpreter; scratch memory starts as NaN.

    Fails at the end if there was a race in one of them.
    """
    params = plgpu.InterpretGPUParams(detect_races=True)
    try:
        with plgpu.force_gpu_interpret_mode(params):
            yield
            jax.effects_barrier()
            races = gpu_callbacks._races  # None if no kernel ran.
            assert races is None or not races.races_found
    finally:
        _running.clear()
        gpu_callbacks.reset_gpu_interpret_mode_state()


def run(function: Callable[..., Any], *args: Any) -> Any:
    """What a function with one kernel in it returns under jit; fails on a race."""
    with interpreter():
        result = jax.block_until_ready(jax.jit(function)(*args))
        assert gpu_callbacks.get_races() is not None
    return result
