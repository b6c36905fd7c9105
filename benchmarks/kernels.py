"""The hand-written kernels, one entry each, and their configurations worth trying."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

import butterjax as bj
from benchmarks.workloads import Workload
from butterjax.gpu.plan import Launch, plan_launches
from pallas_kernels import factor, fused, radix, strided
from pallas_kernels.common import tuned

_TRIES = 32  # Configurations to look at for each that is wanted: most may not fit.

# Fields of a kernel's Config, as rows and tables hold them.
Configuration = dict[str, int | bool | str | None]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as the benchmarks know it.

    Attributes:
      name: of its function, as tuned tables and rows have it.
      implementation: the name in butterjax's registry that runs it.
      is_launched_on: tells what chains implementations launch it on for a workload:
        they may multiply factors out, or take a few at a time.
      run: applies a chain to x; the arguments are those of
        `pallas_kernels.radix.radix`.
      config: its Config.
      default_config: what it takes where no configuration is given; the arguments are
        those of `pallas_kernels.radix.default_config`.
      example: a small chain that it takes, as `benchmarks.cases.parse_chain` reads it.
      grid: for fields of Config, the values worth trying.
      first: configurations to try before all others, by the rule's one.
    """

    name: str
    implementation: str
    is_launched_on: Callable[[Workload, str | None], tuple[bj.Chain, ...]]
    run: Callable[..., jax.Array]
    config: type[Any]
    default_config: Callable[..., Any]
    example: str
    grid: Mapping[str, Sequence[Any]]
    first: Callable[[Any], tuple[Any, ...]] = lambda by_rule: ()


def _launches(
    kernel: str, workload: Workload, precision: str | None
) -> tuple[bj.Chain, ...]:
    """What `pallas` launches it on, factor by factor, and `pallas_chain` does."""
    alone = [bj.Chain([pattern]) for pattern in workload.chain]
    found = [
        _launches_of(kernel, workload, chain, precision)
        for chain in dict.fromkeys([*alone, workload.chain])
    ]
    return tuple(dict.fromkeys(itertools.chain(*found)))


def _launches_of(
    kernel: str, workload: Workload, chain: bj.Chain, precision: str | None
) -> tuple[bj.Chain, ...]:
    launches = plan_launches(
        chain,
        dtype=workload.dtype,
        batch=workload.batch,
        axis=workload.axis,
        precision=precision,
    )
    return tuple(_as_launched(launch) for launch in launches if launch.kernel == kernel)


def _as_launched(launch: Launch) -> bj.Chain:
    """The chain that the kernel sees: between two transposes, blocks of d = 1."""
    if not launch.is_transposed:
        return launch.chain
    (pattern,) = launch.chain
    return bj.Chain([dataclasses.replace(pattern, a=pattern.a * pattern.d, d=1)])


def _of_one(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A kernel for one factor, as `Kernel.run` has it."""

    def run(x: jax.Array, factors: Sequence[jax.Array], **kwargs: Any) -> jax.Array:
        (w,) = factors
        return function(x, w, **kwargs)

    return run


def _configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `default_config` for one factor, as `Kernel.default_config` has it."""

    def config(shapes: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        (shape,) = shapes
        return function(shape, *args, **kwargs)

    return config


def _other_products() -> tuple[factor.Config, ...]:
    """For blocks that wgmma multiplies: tiles of it, and mma.sync to compare with.

    Two warpgroups with the largest tile that they have registers for; three, and
    weights that two CTAs share; resident weights; two CTAs of a multiprocessor, of
    which one computes while the other stores.
    """
    wgmma = factor.Config(
        *(128, 256, 64),
        split_rows=2,
        m_warps=4,
        stages=4,
        out_stages=2,
        wgmma=True,
    )
    replace = dataclasses.replace
    return (
        wgmma,
        replace(wgmma, rows=192, split_rows=3, stages=3, cluster=2),
        replace(wgmma, batch_first=True, resident=True),
        factor.Config(*(128, 256, 32), split_rows=2, m_warps=1, stages=6),
        replace(wgmma, rows=192, split_rows=3, stages=3),
        replace(wgmma, features=128, stages=3, out_stages=1, ctas=264),
        replace(wgmma, rows=256, features=128),
        replace(
            *(wgmma,), rows=256, features=192, split_rows=4, stages=3, out_stages=1
        ),
    )


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            name="factor",
            implementation="pallas",
            is_launched_on=functools.partial(_launches, "factor"),
            run=_of_one(factor.factor),
            config=factor.Config,
            default_config=_configured(factor.default_config),
            example="(2,48,48,4)",
            grid={
                "rows": (64, 128, 256),
                "features": (32, 64, 128),
                "depth": (16, 32, 64),
                "split_rows": (1, 2, 4),
                "split_features": (1, 2, 3),
                "m_warps": (1, 2, 4),
                "stages": (2, 3, 4, 6),
                "out_stages": (1, 2),
                "batch_first": (False, True),
                "resident": (False, True),
                "cluster": (1, 2, 4),
                "cluster_features": (1, 2, 4),
                "ctas": (132, 264),
            },
            first=lambda by_rule: _other_products() if by_rule.wgmma else (),
        ),
        Kernel(
            name="strided",
            implementation="pallas",
            is_launched_on=functools.partial(_launches, "strided"),
            run=_of_one(strided.strided),
            config=strided.Config,
            default_config=_configured(strided.default_config),
            example="(1,16,32,16)",
            grid={
                "neighbours": (8, 16, 32, 64),
                "cluster": (1, 2, 4),
                "stages": (3, 4, 6, 8, 12),
                "ctas": (120, 128, 132),
            },
        ),
        Kernel(
            name="fused",
            implementation="pallas_chain",
            is_launched_on=functools.partial(_launches, "fused"),
            run=fused.fused,
            config=fused.Config,
            default_config=fused.default_config,
            example="(1,16,16,16)(16,16,16,1)",
            grid={
                "rows": (16, 32, 64),
                "stages": (1, 2, 3, 4),
                "out_stages": (0, 1, 2),
                "ctas": (66, 120, 128, 132),
            },
        ),
        Kernel(
            name="radix",
            implementation="pallas_chain",
            is_launched_on=functools.partial(_launches, "radix"),
            run=radix.radix,
            config=radix.Config,
            default_config=radix.default_config,
            example="square_dyadic:64",
            grid={
                "rows": (4, 8, 16, 32, 64, 128, 256),
                "warpgroups": (1, 2, 4),
                "stages": (1, 2, 3, 4),
                "occupancy": (1, 2),
                "ctas": (132, 264),
                "parts_a": (1, 2, 4, 8, 16, 32),
                "parts_d": (1, 2, 4, 8, 16, 32),
            },
        ),
    )
}


def configuration(config: Any) -> Configuration:
    """The fields of a kernel's Config."""
    return dataclasses.asdict(config)


def call(
    kernel: Kernel, workload: Workload, config: Any, *, precision: str | None = None
) -> Callable[..., jax.Array]:
    """The kernel on x and a tuple of factors, in one configuration."""
    return functools.partial(
        kernel.run, axis=workload.axis, config=config, precision=precision
    )


def abstract_arguments(
    workload: Workload,
) -> tuple[jax.ShapeDtypeStruct, tuple[jax.ShapeDtypeStruct, ...]]:
    """x and the factors of a workload, without numbers."""
    sizes = [workload.batch, workload.chain.in_features]
    x = jax.ShapeDtypeStruct(
        sizes if workload.axis == -1 else sizes[::-1], workload.dtype
    )
    return x, tuple(
        jax.ShapeDtypeStruct(shape, workload.dtype) for shape in workload.chain.shapes
    )


def rule_config(
    kernel: Kernel, workload: Workload, *, precision: str | None = None
) -> Any:
    """The configuration that the kernel takes for a workload if no table has one.

    Raises:
      NotImplementedError: if the kernel does not take the workload.
    """
    return kernel.default_config(
        workload.chain.shapes,
        workload.dtype,
        workload.batch,
        axis=workload.axis,
        precision=precision,
        device=tuned.NO_DEVICE,
    )


def candidates(
    kernel: Kernel, workload: Workload, limit: int, *, precision: str | None = None
) -> list[Any]:
    """Configurations that fit: by rule first, then those that are most like that one.

    Args:
      kernel: the kernel.
      workload: what it is given.
      limit: how many to return at most.
      precision: as in `jax.lax.dot_general`.

    Raises:
      NotImplementedError: if the kernel does not take the workload.
    """
    by_rule = rule_config(kernel, workload, precision=precision)

    nearby = itertools.islice(_nearby(kernel, by_rule), _TRIES * limit)
    tried = dict.fromkeys([by_rule, *kernel.first(by_rule), *nearby])
    fitting = (config for config in tried if _fits(kernel, workload, config, precision))
    return list(itertools.islice(fitting, limit))


def _nearby(kernel: Kernel, like: Any) -> Iterator[Any]:
    """Configurations of a kernel's grid: first those that differ in one field only."""
    for count in range(1, len(kernel.grid) + 1):
        for names in itertools.combinations(kernel.grid, count):
            for values in itertools.product(*(kernel.grid[name] for name in names)):
                fields = dict(zip(names, values, strict=True))
                if any(getattr(like, name) == fields[name] for name in names):
                    continue  # It differs in fewer.
                try:
                    yield dataclasses.replace(like, **fields)
                except ValueError:  # The fields do not go together.
                    continue


def _fits(
    kernel: Kernel, workload: Workload, config: Any, precision: str | None
) -> bool:
    function = call(kernel, workload, config, precision=precision)
    try:
        jax.eval_shape(function, *abstract_arguments(workload))
    except NotImplementedError:
        return False
    return True
