"""The patterns that arXiv 2405.15013 measures, by the rule of its public code.

A pattern (a, b, c, d) is the support I_a ⊗ 1_{b×c} ⊗ I_d. The paper's batch is 25,088.
"""

import itertools
from collections.abc import Iterable

from butterjax import Pattern

BATCH = 25_088

_COPIES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # Values of a and of d.
_SIZES = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # Values of b and of c.
_BLOCKS = tuple(
    (b, c)
    for b, c in itertools.product(_SIZES, _SIZES)
    if b in (c, 4 * c) or c == 4 * b
)
_NOT_IN_SCRIPT = (
    (64, 256),
    (128, 512),
    (256, 64),
    (256, 1024),
    (512, 128),
    (1024, 256),
)
_LIMIT = 2**31 - 1  # Its indices are 32 bits wide.


def _fits(pattern: Pattern) -> bool:
    widest = max(pattern.in_features, pattern.out_features)
    return max(BATCH * widest, pattern.num_weights) < _LIMIT


def _in_order(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    chosen = {pattern.shape for pattern in patterns if _fits(pattern)}
    return tuple(Pattern(*shape) for shape in sorted(chosen))


def script() -> tuple[Pattern, ...]:
    """The 376 patterns that the loops of its benchmark script go through."""
    return _in_order(
        Pattern(a, b, c, d)
        for a, (b, c), d in itertools.product(_COPIES, _BLOCKS, (4, 16, 64))
        if (b, c) not in _NOT_IN_SCRIPT
    )


def paper() -> tuple[Pattern, ...]:
    """Those 376 and all with a = 1: 627, the likeliest reading of the paper's "600"."""
    first = [Pattern(1, b, c, d) for (b, c), d in itertools.product(_BLOCKS, _COPIES)]
    return _in_order([*script(), *first])


def tuned() -> tuple[Pattern, ...]:
    """Those 627 and all with d = 1: the 904 that its kernels are tuned for."""
    last = [Pattern(a, b, c, 1) for a, (b, c) in itertools.product(_COPIES, _BLOCKS)]
    return _in_order([*paper(), *last])


def quick() -> tuple[Pattern, ...]:
    """A few of them that a CPU is done with soon: square, wide and tall blocks."""
    return _in_order(
        Pattern(a, b, c, d)
        for (a, d), (b, c) in itertools.product(
            ((1, 1), (1, 4), (4, 4), (16, 1)),
            ((48, 48), (48, 192), (192, 48), (128, 128)),
        )
    )


SUBSETS = {"quick": quick, "paper": paper, "tuned": tuned}
