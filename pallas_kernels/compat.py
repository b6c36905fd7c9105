"""What leans on parts of JAX that may change from one version to the next."""

from typing import Any

import jax
from jax._src import config as _config
from jax._src.lax.lax import canonicalize_precision as _canonicalize_precision
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_gpu_only_p = Primitive("gpu_only")
_gpu_only_p.def_abstract_eval(lambda x: x)
_gpu_only_p.def_impl(jax.jit(_gpu_only_p.bind))
batching.defvectorized(_gpu_only_p)


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> list[Any]:
    # The interpreter of GPU kernels, which tests run, works on a CPU too.
    interpreted = _config.pallas_tpu_interpret_mode_context_manager.value is not None
    platforms = ctx.module_context.platforms
    if not interpreted and tuple(platforms) != ("cuda",):
        raise NotImplementedError(
            "the kernel is for NVIDIA GPUs, from Hopper on, but was lowered for "
            f"{', '.join(platforms)}"
        )
    return [x]


mlir.register_lowering(_gpu_only_p, _lower)


def canonicalize_precision(precision: jax.lax.PrecisionLike) -> Any:
    """The precision for both operands as a pair, with the default of JAX's config.

    Returns:
      A pair of `jax.lax.Precision`, a `jax.lax.DotAlgorithm` or preset, or None.

    Raises:
      ValueError: if it is none of what `jax.lax.dot_general` takes.
    """
    return _canonicalize_precision(precision)


def gpu_only(x: jax.Array) -> jax.Array:
    """x itself; raises NotImplementedError where it is lowered for no NVIDIA GPU.

    Where a function is traced says nothing about where it will run, so that is the
    first moment to tell.
    """
    y: jax.Array = _gpu_only_p.bind(x)
    return y
