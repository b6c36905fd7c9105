"""Which chain and implementation to use for a layer, or a dense one: `recommend`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from butterjax import array_checks, checks
from butterjax.pattern import Chain
from butterjax.planning import floor
from butterjax.planning.rates import Rates, rates_of
from butterjax.planning.rule import choose

DENSE_LAYER = "dense layer"

# The model cannot tell apart what is as close as this: the fewest factors win then.
_TIE = 1.1


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of one implementation, beside a dense layer of the same size.

    Attributes:
      device: name of the device.
      chain: what was applied; for the dense layer the chain that it was beside.
      batch: rows of x.
      dtype: name of the type of all arrays.
      axis: the feature axis of x, -1 or 0.
      backward: whether the gradients were taken too.
      implementation: name in the registry, or `DENSE_LAYER`.
      seconds: of a call, median.
      ratio: first quartile, median and third quartile of its time over that of the
        dense layer.
      peak_bytes: memory for arguments, results and temporaries; None if not known.
    """

    device: str
    chain: Chain
    batch: int
    dtype: str
    axis: Literal[0, -1]
    backward: bool
    implementation: str
    seconds: float
    ratio: tuple[float, float, float]
    peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to make a layer.

    Attributes:
      chain: the patterns; None for a dense layer.
      implementation: name in the registry, or `DENSE_LAYER`.
      seconds: of a call; where it was not measured, the least that the floor model
        allows, which a call may take many times as long as.
      ratio: that over the time of a dense layer: quartiles where it was measured,
        three times the same number where it was not.
      weight_bytes: of the weights.
      peak_bytes: expected for arguments, results and temporaries; None if not known.
    """

    chain: Chain | None
    implementation: str
    seconds: float
    ratio: tuple[float, float, float]
    weight_bytes: int
    peak_bytes: int | None

    @property
    def num_factors(self) -> int:
        """Length of the chain, 0 for a dense layer."""
        return 0 if self.chain is None else len(self.chain)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to use, and what it was chosen from.

    Attributes:
      best: what to use; may be the dense layer.
      dense: the dense layer; where it was measured, as it was beside the best chain.
      options: all that were compared, fastest first, `dense` among them.
      is_measured: whether the times were measured on the device, for this very layer;
        otherwise the floor model gives them.
      rates: that the model took, None where the times were measured.
    """

    best: Option
    dense: Option
    options: tuple[Option, ...]
    is_measured: bool
    rates: Rates | None

    @property
    def source(self) -> str:
        """Where the times are from, as a sentence for whoever reads them."""
        if self.rates is None:
            return "Times were measured on this device, beside a dense layer."
        return (
            "No timing of this layer on this device was given: times are lower bounds "
            f"of a model whose rates are {self.rates.source}, not predictions. A call "
            "may take many times as long, and another option may be faster."
        )


def candidates(in_features: int, out_features: int) -> tuple[Chain, ...]:
    """Chains to consider where none are named: 2 to 4 factors, and radix-2.

    All of them `replaces_dense`. There may be none: a prime number of features cannot
    be split.

    Raises:
      TypeError: if a size is no integer.
      ValueError: if it is below 1 or above 2³¹ - 1.
    """
    in_features = checks.size("candidates", "in_features", in_features)
    out_features = checks.size("candidates", "out_features", out_features)
    makers: list[Callable[[], Chain]] = [
        functools.partial(Chain.from_shape, in_features, out_features, num_factors=n)
        for n in (2, 3, 4)
    ]
    if in_features == out_features:
        makers.append(functools.partial(Chain.square_dyadic, in_features))
    found = []
    for make in makers:
        try:
            found.append(make())
        except ValueError:  # Sizes that do not split that way.
            continue
    return tuple(chain for chain in dict.fromkeys(found) if replaces_dense(chain))


def recommend(
    in_features: int,
    out_features: int,
    *,
    batch: int,
    dtype: DTypeLike,
    device: str,
    axis: Literal[0, -1] = -1,
    backward: bool = False,
    chains: Sequence[Chain] | None = None,
    timings: Iterable[Timing] = (),
) -> Recommendation:
    """Says which chain and implementation to use for a layer, or to stay with dense.

    Where `timings` hold this layer on this device (same sizes, batch, dtype, axis and
    direction), they decide: the lowest median ratio to the dense layer wins, unless its
    third quartile reaches 1; then the dense layer does. Where they do not, the floor
    model of `butterjax.planning.floor` does, with rates that timings of the same device
    and dtype have shown, or else with assumed ones; of options within 10 % of the
    fastest it takes the one with the fewest factors. The model tells what is possible,
    not what will be measured: calls of dense layers and of chains may take many times
    as long, on CPUs most of all, and not in the same proportion.
    `Recommendation.source` says which of the two it was.

    Args:
      in_features: columns of the layer's matrix.
      out_features: rows of the layer's matrix.
      batch: rows of x.
      dtype: of x and of the weights, a real floating type or its name ("bfloat16" or
        "bf16").
      device: its name, as in the timings; see `butterjax.planning.rates_of`.
      axis: the feature axis of x: -1 for feature-last, 0 for feature-first.
      backward: whether to count a forward and a backward pass, not the former alone.
      chains: the chains to choose from; None for all that were measured and that
        `replaces_dense`, or for `candidates`.
      timings: what was measured, of any devices and layers.

    Returns:
      The best option, and those it was compared with.

    Raises:
      ValueError: if an argument is out of range, a chain has other sizes, or neither
        timings nor rates are known for the device.
      TypeError: if an argument is of another kind, or dtype is no real floating type.
    """
    in_features = checks.size("recommend", "in_features", in_features)
    out_features = checks.size("recommend", "out_features", out_features)
    batch = checks.integer("recommend", "batch", batch, least=1)
    kind = array_checks.dtype("recommend", "dtype", dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise TypeError(
            f"recommend: dtype must be a real floating type, got {kind.name}"
        )
    checks.instance("recommend", "device", device, str, "the name of a device")
    checks.axis("recommend", axis)
    checks.boolean("recommend", "backward", backward)
    if chains is not None:
        chains = checks.sequence("recommend", "chains", chains, "a sequence of chains")
        for i, chain in enumerate(chains):
            _check_ends(f"chains[{i}]", chain, in_features, out_features)
    timings = checks.sequence("recommend", "timings", timings, "a sequence of Timing")
    for i, timing in enumerate(timings):
        checks.instance("recommend", f"timings[{i}]", timing, Timing)
    layer = _Layer(
        in_features, out_features, batch, kind.name, kind.itemsize, axis, backward
    )
    there = [one for one in timings if one.device == device]
    found = _of_layer(layer, chains, there)
    if any(timing.implementation != DENSE_LAYER for timing in found):
        return _by_measurement(layer, found)
    if chains is None:
        chains = candidates(in_features, out_features)
    rates = calibrate(rates_of(device), [t for t in there if t.dtype == kind.name])
    return _by_model(layer, chains, rates)


def _check_ends(name: str, chain: Chain, in_features: int, out_features: int) -> None:
    array_checks.chain("recommend", name, chain)
    if (chain.in_features, chain.out_features) != (in_features, out_features):
        raise ValueError(
            f"recommend: {name} must map {in_features} to {out_features} features, got "
            f"{chain}"
        )


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What is asked for; the fields are the arguments of `recommend`."""

    in_features: int
    out_features: int
    batch: int
    dtype: str
    itemsize: int
    axis: Literal[0, -1]
    backward: bool

    def is_of(self, timing: Timing) -> bool:
        """Whether a timing is of this layer, apart from the device."""
        return (
            timing.chain.in_features == self.in_features
            and timing.chain.out_features == self.out_features
            and timing.batch == self.batch
            and timing.dtype == self.dtype
            and timing.axis == self.axis
            and timing.backward == self.backward
        )


def _of_layer(
    layer: _Layer, chains: Sequence[Chain] | None, timings: Iterable[Timing]
) -> list[Timing]:
    """The timings of the layer and the chains, and of dense layers."""

    def counts(timing: Timing) -> bool:
        if timing.implementation == DENSE_LAYER:
            return True
        if chains is not None:
            return timing.chain in chains
        return replaces_dense(timing.chain)

    return [timing for timing in timings if layer.is_of(timing) and counts(timing)]


def _by_measurement(layer: _Layer, found: Sequence[Timing]) -> Recommendation:
    """Of the same chain and implementation the fastest, and one dense layer."""
    ranked: dict[tuple[Chain, str], Timing] = {}
    for timing in sorted(found, key=lambda t: (t.ratio[1], t.seconds)):
        ranked.setdefault((timing.chain, timing.implementation), timing)
    options = [
        Option(
            chain=timing.chain,
            implementation=timing.implementation,
            seconds=timing.seconds,
            ratio=timing.ratio,
            weight_bytes=layer.itemsize * timing.chain.num_weights,
            peak_bytes=timing.peak_bytes,
        )
        for timing in ranked.values()
        if timing.implementation != DENSE_LAYER
    ]
    best = options[0]
    assert best.chain is not None
    beside = ranked.get((best.chain, DENSE_LAYER))
    dense = Option(
        chain=None,
        implementation=DENSE_LAYER,
        seconds=beside.seconds if beside else best.seconds / best.ratio[1],
        ratio=(1.0, 1.0, 1.0),
        weight_bytes=layer.itemsize * layer.in_features * layer.out_features,
        peak_bytes=beside.peak_bytes if beside else None,
    )
    return Recommendation(
        best=best if best.ratio[2] < 1 else dense,
        dense=dense,
        options=tuple(sorted([*options, dense], key=lambda option: option.ratio[1])),
        is_measured=True,
        rates=None,
    )


def _by_model(layer: _Layer, chains: Sequence[Chain], rates: Rates) -> Recommendation:
    sizes = (layer.in_features, layer.out_features)
    call = floor.Call(layer.batch, layer.itemsize, layer.backward)
    dense_seconds = floor.seconds(
        floor.dense_launches(*sizes, call), rates, layer.dtype
    )
    dense = Option(
        chain=None,
        implementation=DENSE_LAYER,
        seconds=dense_seconds,
        ratio=(1.0, 1.0, 1.0),
        weight_bytes=layer.itemsize * layer.in_features * layer.out_features,
        peak_bytes=floor.dense_bytes(*sizes, call),
    )
    options = [dense]
    for chain in chains:
        for implementation, runs in _implementations(layer, chain, rates):
            seconds = floor.seconds(
                floor.chain_launches(chain, call, runs=runs), rates, layer.dtype
            )
            options.append(
                Option(
                    chain=chain,
                    implementation=implementation,
                    seconds=seconds,
                    ratio=(seconds / dense_seconds,) * 3,
                    weight_bytes=layer.itemsize * chain.num_weights,
                    peak_bytes=floor.chain_bytes(chain, call, runs=runs),
                )
            )
    options.sort(key=lambda option: (option.seconds, option.num_factors))
    close = [o for o in options if o.seconds <= _TIE * options[0].seconds]
    return Recommendation(
        best=min(close, key=lambda option: (option.num_factors, option.seconds)),
        dense=dense,
        options=tuple(options),
        is_measured=False,
        rates=rates,
    )


def _implementations(
    layer: _Layer, chain: Chain, rates: Rates
) -> Iterator[tuple[str, tuple[Chain, ...] | None]]:
    """Names of what the model can stand for, and what shares a launch there.

    Multiplying the chain out is no option: the dense layer does that product too.
    """
    rule = choose(chain, batch=layer.batch, axis=layer.axis)
    if rule != "dense":
        yield rule, None
    if rates.runs_kernels:
        from butterjax.gpu import plan_launches  # Kernels take a second to import.

        try:
            launches = plan_launches(
                chain, dtype=layer.dtype, batch=layer.batch, axis=layer.axis
            )
        except NotImplementedError:
            return
        yield "pallas_chain", tuple(launch.chain for launch in launches)


def calibrate(rates: Rates, timings: Sequence[Timing]) -> Rates:
    """Rates that measured forward passes have shown, in the place of assumed ones.

    The matmul rate of a dtype is the highest FLOP rate of a dense layer, the copy rate
    the highest rate at which x, the weights and y were moved, each once. Both are what
    was reached, so the device may be capable of more.

    Args:
      rates: what is kept where nothing was measured.
      timings: of one device.

    Raises:
      TypeError: if an argument is of another kind.
    """
    checks.instance("calibrate", "rates", rates, Rates)
    timings = checks.sequence("calibrate", "timings", timings, "a sequence of Timing")
    for i, timing in enumerate(timings):
        checks.instance("calibrate", f"timings[{i}]", timing, Timing)
    forward = [timing for timing in timings if not timing.backward]
    matmul: dict[str, float] = {}
    copies = []
    for timing in forward:
        chain = timing.chain
        call = floor.Call(timing.batch, jnp.dtype(timing.dtype).itemsize, False)
        if timing.implementation == DENSE_LAYER:
            (launch,) = floor.dense_launches(
                chain.in_features, chain.out_features, call
            )
            rate = launch.flops / timing.seconds
            matmul[timing.dtype] = max(rate, matmul.get(timing.dtype, 0.0))
        else:
            (launch,) = floor.chain_launches(chain, call, runs=[chain])
        copies.append(launch.num_bytes / timing.seconds)
    if not forward:
        return rates
    return dataclasses.replace(
        rates,
        copy_rate=max(copies),
        matmul_rates={**rates.matmul_rates, **matmul},
        source=f"the highest seen in {len(forward)} measured calls",
    )


def replaces_dense(chain: Chain) -> bool:
    """Whether a chain can take the place of a dense layer, with fewer weights.

    Every feature of the result must depend on every feature of x.

    Raises:
      TypeError: if `chain` is no chain.
    """
    array_checks.chain("replaces_dense", "chain", chain)
    num_entries = chain.in_features * chain.out_features
    return chain.num_weights < num_entries and _is_full(chain)


@functools.lru_cache(maxsize=1024)
def _is_full(chain: Chain) -> bool:
    """Whether the product has no entry that must be zero."""
    if chain.is_chainable:
        return chain.density == 1
    step = 256  # Columns of the matrix at a time.
    columns = np.arange(chain.in_features)
    for start in range(0, chain.in_features, step):
        reached = columns == columns[start : start + step, None]
        for a, b, c, d in reversed(chain.patterns):
            hit = reached.reshape(-1, a, 1, c, d).any(axis=3)
            reached = np.repeat(hit, b, axis=2).reshape(len(hit), -1)
        if not reached.all():
            return False
    return True
