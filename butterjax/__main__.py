"""Says which chains could take the place of a dense layer, and what they would save.

  python -m butterjax --in=1024 --out=4096
  python -m butterjax --in=1024 --out=4096 --batch=8192 --dtype=bf16 \\
      --device="NVIDIA H200" --backward

Times are lower bounds of a model, not measured ones. The programs that measure, on your
sizes too, need a checkout of the project.

The same as a function: butterjax.planning.recommend.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging

from butterjax.planning import Option, Recommendation, recommend

_MEASURE = (
    "To measure, in a checkout of the project: python -m benchmarks.compare --help"
)


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_integer("in", None, "Features of x.", lower_bound=1, required=True)
    flags.DEFINE_integer(
        "out", None, "Features of the result.", lower_bound=1, required=True
    )
    flags.DEFINE_integer("batch", 1024, "Rows of x.", lower_bound=1)
    flags.DEFINE_string("dtype", "float32", "Type of x and the weights.")
    flags.DEFINE_string(
        "device", None, 'Such as "NVIDIA H200" or "cpu"; this machine\'s if not given.'
    )
    flags.DEFINE_bool("backward", False, "Whether to count the gradients too.")


def describe(found: Recommendation) -> str:
    """All options, the fastest first, what to use, and where the times are from."""
    words = "" if found.is_measured else "at least "
    lines = [words + _line(option) for option in found.options]
    best = found.best
    advice = (
        "Stay with a dense layer."
        if best.chain is None
        else f"Candidate: bj.butterfly(x, factors, implementation="
        f"{best.implementation!r}) with factors of bj.{best.chain!r}"
    )
    return "\n".join([*lines, advice, found.source, _MEASURE])


def _line(option: Option) -> str:
    milliseconds = f"{1e3 * option.seconds:.3g} ms"
    mebibytes = f"{option.weight_bytes / 2**20:.3g} MiB"
    what = f"  {option.chain}" if option.chain else ""
    return f"{milliseconds:>10}{mebibytes:>12}  {option.implementation}{what}"


def main(argv: Sequence[str]) -> int:
    """Prints what `describe` says of the layer that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"What is not a flag has no meaning here: {argv[1:]}")
    given = flags.FLAGS
    in_features: int = given.get_flag_value("in", 0)
    try:
        found = recommend(
            in_features,
            given.out,
            batch=given.batch,
            dtype=given.dtype,
            device=given.device or jax.devices()[0].device_kind,
            backward=given.backward,
        )
    except (TypeError, ValueError) as error:
        print(f"error: {error}")
        return 1
    print(describe(found))
    return 0


if __name__ == "__main__":
    define_flags()
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
