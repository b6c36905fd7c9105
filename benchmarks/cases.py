"""The chains that are measured, by name or as a flag spells them."""

import re
from collections.abc import Sequence

from absl import flags

import butterjax as bj

# Layers of the networks in arXiv 2405.15013, section 5 and its public code.
PAPER_CHAINS = {
    "vit_s16_qkvo": bj.Chain([(1, 192, 48, 2), (2, 48, 192, 1)]),
    "vit_s16_up": bj.Chain([(1, 768, 192, 2), (6, 64, 64, 1)]),
    "vit_s16_down": bj.Chain([(1, 128, 128, 3), (6, 64, 256, 1)]),
    "gpt2_medium_down": bj.Chain([(1, 64, 64, 16), (16, 64, 256, 1)]),
}

DEFAULT_SPECS = (
    *(f"square_dyadic:{n}" for n in (256, 1024, 4096)),
    *(f"monarch:{n}x{n}" for n in (256, 1024, 4096)),
    *PAPER_CHAINS,
)

SPEC_HELP = (
    "square_dyadic:N, the same multiplied out into K factors as square_dyadic:N/K, "
    "monarch:INxOUT, patterns (a,b,c,d)(a,b,c,d)... in the order of "
    f"the matrix product, or one of {', '.join(PAPER_CHAINS)}"
)

_PATTERN = r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)"


def parse_chain(spec: str) -> bj.Chain:
    """The chain that a spec names; `SPEC_HELP` tells the forms.

    Raises:
      ValueError: if the spec has none of the forms, or names an impossible chain.
    """
    if spec in PAPER_CHAINS:
        return PAPER_CHAINS[spec]
    if match := re.fullmatch(r"square_dyadic:(\d+)(?:/(\d+))?", spec):
        chain = bj.Chain.square_dyadic(int(match[1]))
        return _collapse(chain, int(match[2])) if match[2] else chain
    if match := re.fullmatch(r"monarch:(\d+)x(\d+)", spec):
        return bj.Chain.monarch(int(match[1]), int(match[2]))
    if re.fullmatch(rf"({_PATTERN}\s*)+", spec):
        return bj.Chain(
            [tuple(map(int, found)) for found in re.findall(_PATTERN, spec)]
        )
    raise ValueError(f"{spec!r} is no chain; write {SPEC_HELP}")


def _collapse(chain: bj.Chain, num_factors: int) -> bj.Chain:
    """Multiplies out neighbours, as evenly as can be."""
    if not 1 <= num_factors <= len(chain):
        raise ValueError(
            f"square_dyadic:{chain.in_features} has {len(chain)} factors, which cannot "
            f"be multiplied out into {num_factors}"
        )
    least, longer = divmod(len(chain), num_factors)
    return chain.fuse([least + (i < longer) for i in range(num_factors)])


def define_flag(default: Sequence[str], purpose: str) -> None:
    """Defines the flag --chain, which may be given several times.

    Args:
      default: specs; if there are none, none need be given.
      purpose: what the chains are for.
    """

    def check(specs: Sequence[str]) -> bool:
        try:
            return can_parse(specs) or not default
        except ValueError as error:
            raise flags.ValidationError(str(error)) from error

    flags.DEFINE_multi_string("chain", list(default), f"{purpose} {SPEC_HELP}.")
    flags.register_validator("chain", check)


def can_parse(specs: Sequence[str]) -> bool:
    """Whether every spec names a chain, and there is one; raises as `parse_chain`."""
    return bool([parse_chain(spec) for spec in specs])
