"""The floor model: no call is faster than its bytes and its FLOPs allow.

A launch that moves some bytes through the device's memory and does some FLOPs takes at
least the longer of bytes / copy rate and FLOPs / matmul rate, and what it costs to be
started. Per row of the batch, a factor (a, b, c, d) does 2·a·b·c·d FLOPs and moves
itemsize·a·d·(b + c) bytes, so that nearly all factors are bound by memory: a chain in
one launch moves the bytes of x and y once, one factor at a time moves those of every
intermediate too.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.pattern import Chain, Pattern
from butterjax.planning.rates import Rates


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel or library call.

    Attributes:
      num_bytes: read from and written to the device's memory, each array once.
      flops: floating-point operations.
    """

    num_bytes: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Call:
    """How a layer is called.

    Attributes:
      batch: rows of x.
      itemsize: bytes of one element.
      backward: whether the gradients in x and in the weights are wanted too.
    """

    batch: int
    itemsize: int
    backward: bool


def seconds(launches: Iterable[Launch], rates: Rates, dtype: DTypeLike) -> float:
    """The least time that launches one after the other can take.

    Raises:
      ValueError: if the rates have no matmul rate for the dtype.
    """
    name = jnp.dtype(dtype).name
    if name not in rates.matmul_rates:
        raise ValueError(
            f"no matmul rate of {rates.device} is known for {name}, only for: "
            f"{', '.join(rates.matmul_rates)}"
        )
    return sum(
        max(one.num_bytes / rates.copy_rate, one.flops / rates.matmul_rates[name])
        + rates.launch_seconds
        for one in launches
    )


def dense_launches(
    in_features: int, out_features: int, call: Call
) -> tuple[Launch, ...]:
    """Those of a dense layer: y; for the gradients also dx and dw, with as much work.

    Args:
      in_features: columns of the matrix.
      out_features: rows of the matrix.
      call: how the layer is called.
    """
    one = Launch(
        call.itemsize * _dense_arrays(in_features, out_features, call),
        2 * call.batch * in_features * out_features,
    )
    return (one,) * (3 if call.backward else 1)


def chain_launches(
    chain: Chain, call: Call, *, runs: Sequence[Chain] | None = None
) -> tuple[Launch, ...]:
    """Those of a chain; the gradients take two more per factor, with as much work each.

    Args:
      chain: the patterns.
      call: how the chain is called.
      runs: chains whose product is the chain, in that order: each is applied in one
        launch, its intermediates kept on chip. The backward pass then computes the
        intermediates again, one factor of the runs at a time, as the gradients are.
        None for a launch per factor, forward too.
    """
    single = tuple(_launch(Chain([one]), call) for one in _launched(chain, runs))[::-1]
    if runs is None:
        return single * (3 if call.backward else 1)
    forward = tuple(_launch(run, call) for run in reversed(runs))
    # The last to be applied needs no computing again: nobody reads y.
    return (*forward, *single[:-1], *single, *single) if call.backward else forward


def dense_bytes(in_features: int, out_features: int, call: Call) -> int:
    """Memory for x, the matrix and y, and for the gradients as much again."""
    arrays = _dense_arrays(in_features, out_features, call)
    return call.itemsize * arrays * (2 if call.backward else 1)


def chain_bytes(
    chain: Chain, call: Call, *, runs: Sequence[Chain] | None = None
) -> int:
    """Memory for x, the factors and y, their gradients, and intermediates.

    The arguments are those of `chain_launches`. Forward, two neighbouring
    intermediates exist at a time, and none within a run; the gradients need all of
    them, but one at a time where there are runs.
    """
    arrays = _chain_arrays(chain, call)
    patterns = _launched(chain, runs)
    middles = [call.batch * pattern.in_features for pattern in patterns[:-1]]
    if call.backward:
        kept = sum(middles) if runs is None else max(middles, default=0)
        return call.itemsize * (2 * arrays + kept)
    if runs is not None:
        middles = [call.batch * run.in_features for run in runs[:-1]]
    pairs = zip([0, *middles], [*middles, 0], strict=True)
    most = max(left + right for left, right in pairs)
    return call.itemsize * (arrays + most)


def _launched(chain: Chain, runs: Sequence[Chain] | None) -> tuple[Pattern, ...]:
    """The factors as they are multiplied with: those of the runs, if there are any."""
    if runs is None:
        return chain.patterns
    return tuple(pattern for run in runs for pattern in run.patterns)


def _launch(chain: Chain, call: Call) -> Launch:
    """A whole chain in one, forward."""
    return Launch(call.itemsize * _chain_arrays(chain, call), call.batch * chain.flops)


def _dense_arrays(in_features: int, out_features: int, call: Call) -> int:
    """Elements of x, the matrix and y."""
    return call.batch * (in_features + out_features) + in_features * out_features


def _chain_arrays(chain: Chain, call: Call) -> int:
    """Elements of x, the factors and y."""
    return call.batch * (chain.in_features + chain.out_features) + chain.num_weights
