"""The hand-written kernels, one entry each, and their configurations worth trying."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from benchmarks.workloads import Workload
from pallas_kernels import chain, tuned

# Fields of a kernel's Config, as rows and tables hold them.
Configuration = dict[str, int | bool | str | None]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as the benchmarks know it.

    Attributes:
      name: of its function, as tuned tables and rows have it.
      implementation: the name in butterjax's registry that runs it.
      run: applies a chain to x; the arguments are those of
        `pallas_kernels.chain.chain`.
      config: its Config.
      default_config: what it takes where no configuration is given; the arguments are
        those of `pallas_kernels.chain.default_config`.
      dtypes: that it takes.
      checked: chains that it is checked on, as `benchmarks.cases.parse_chain` reads
        them; the first is small, and all epilogues and batches are checked on it.
      max_factors: the most factors that it applies in a call, None for any number.
      grid: for fields of Config, the values worth trying.
      first: configurations to try before all others.
    """

    name: str
    implementation: str
    run: Callable[..., jax.Array]
    config: type[Any]
    default_config: Callable[..., Any]
    dtypes: tuple[str, ...]
    checked: tuple[str, ...]
    max_factors: int | None
    grid: Mapping[str, Sequence[Any]]
    first: tuple[Any, ...] = ()

    def takes(self, num_factors: int) -> bool:
        """Whether it may be given so many factors."""
        return self.max_factors is None or num_factors <= self.max_factors


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            name="chain",
            implementation="pallas_chain",
            run=chain.chain,
            config=chain.Config,
            default_config=chain.default_config,
            dtypes=("bfloat16", "float16", "float32"),
            # Blocks of 16, 32, 48, 2, 192; b ≠ c; d = 1 last and d > 1 last; then whole
            # layers, in the configurations that users get.
            checked=(
                "monarch:256x256",
                "(1,48,48,1)",
                "(16,16,32,1)(1,32,16,16)",
                "(1,32,16,16)(16,16,48,1)",
                "(1,12,4,16)(4,16,16,1)",
                "square_dyadic:64",
                "square_dyadic:1024",
                "vit_s16_qkvo",
                "vit_s16_up",
                "vit_s16_down",
                "gpt2_medium_down",
                "monarch:768x768",
                "monarch:768x3072",
                "monarch:3072x768",
                "monarch:1024x1024",
                "monarch:2048x2048",
            ),
            max_factors=None,
            grid={
                "rows": (16, 32, 64, 128),
                "warpgroups": (2, 4, 8),
                "m_warps": (1, 2, 4),
                "stages": (1, 2, 3, 4),
                "out_stages": (1, 2),
                "shares": (1, 2, 4),
                "ctas": (132, 264),
            },
            # One CTA with a large tile, or two that hide each other's waiting.
            first=(
                chain.Config(rows=64, stages=2, ctas=132),
                chain.Config(rows=32, stages=1, ctas=264),
            ),
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
    if not kernel.takes(len(workload.chain)):
        raise NotImplementedError(
            f"{kernel.name} takes at most {kernel.max_factors} factors, got "
            f"{len(workload.chain)}"
        )
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

    def distance(config: Any) -> int:
        pairs = zip(
            dataclasses.astuple(config), dataclasses.astuple(by_rule), strict=True
        )
        return sum(mine != its for mine, its in pairs)

    ordered = sorted(_grid(kernel, by_rule), key=distance)
    found: list[Any] = []
    for config in dict.fromkeys([by_rule, *kernel.first, *ordered]):
        if len(found) == limit:
            break
        if _fits(kernel, workload, config, precision):
            found.append(config)
    return found


def _grid(kernel: Kernel, like: Any) -> list[Any]:
    made = []
    for values in itertools.product(*kernel.grid.values()):
        fields = dict(zip(kernel.grid, values, strict=True))
        try:
            made.append(dataclasses.replace(like, **fields))
        except ValueError:  # The fields do not go together.
            continue
    return made


def _fits(
    kernel: Kernel, workload: Workload, config: Any, precision: str | None
) -> bool:
    function = call(kernel, workload, config, precision=precision)
    try:
        jax.eval_shape(function, *abstract_arguments(workload))
    except NotImplementedError:
        return False
    return True
