import itertools
import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from butterjax import Chain, Pattern
from tests import strategies


def support_by_definition(a, b, c, d):
    """Ones where row (i, j, k) and column (i, l, k) share i and k."""
    rows = list(itertools.product(range(a), range(b), range(d)))
    columns = list(itertools.product(range(a), range(c), range(d)))
    return np.array(
        [[r[0] == s[0] and r[2] == s[2] for s in columns] for r in rows], bool
    )


@hypothesis.given(strategies.patterns())
def test_pattern_counts_its_support(pattern):
    support = support_by_definition(*pattern)
    np.testing.assert_array_equal(pattern.support(), support)
    assert (pattern.out_features, pattern.in_features) == support.shape
    assert pattern.num_weights == support.sum() == math.prod(pattern.shape)
    assert pattern.density == pytest.approx(support.mean())
    assert pattern.flops == 2 * support.sum()
    assert pattern.bytes_per_row(2) == 2 * sum(support.shape)
    np.testing.assert_array_equal(pattern.transpose.support(), support.T)


@hypothesis.given(strategies.chains(min_factors=2, max_factors=2))
def test_product_pattern_is_the_support_of_the_product(chain):
    left, right = chain
    assert left.is_chainable(right)
    product = left.support().astype(int) @ right.support().astype(int)
    np.testing.assert_array_equal((left @ right).support(), product > 0)


@hypothesis.given(strategies.patterns(), strategies.patterns())
def test_chainable_means_every_entry_sums_over_r(left, right):
    reason = left.why_not_chainable(right)
    a1, _, c1, d1 = left
    a2, b2, _, d2 = right
    rule = (
        a1 * c1 * d1 == a2 * b2 * d2
        and a2 % a1 == 0
        and d1 % d2 == 0
        and a1 * c1 % a2 == 0
        and b2 * d2 % d1 == 0
    )
    assert (reason is None) == rule == left.is_chainable(right)
    if rule:
        product = left.support().astype(int) @ right.support().astype(int)
        assert set(np.unique(product)) <= {0, a1 * c1 // a2}
    else:
        with pytest.raises(ValueError, match="not chainable"):
            _ = left @ right


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        ((1, 2, 3, 1), (1, 4, 2, 1), "takes 3 features, the right one gives 4"),
        ((2, 2, 3, 1), (1, 6, 2, 1), "a of the left, 2, does not divide 1"),
        ((1, 2, 2, 3), (1, 3, 2, 2), "d of the right, 2, does not divide 3"),
        ((1, 128, 128, 3), (6, 64, 256, 1), "128/6 is not an integer"),
    ],
)
def test_reason_for_not_chainable(left, right, reason):
    assert reason in (Pattern(*left).why_not_chainable(Pattern(*right)) or "")


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1), (1, -2, 1, 1)])
def test_pattern_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        Pattern(*sizes)


def test_pattern_sizes_must_be_integers():
    with pytest.raises(TypeError):
        Pattern(1, 2.0, 2, 1)  # type: ignore[arg-type]


def test_patterns_and_chains_are_values():
    chain = Chain([(1, 2, 2, 2), Pattern(2, 2, 2, 1)])
    assert chain == Chain.square_dyadic(4)
    assert len({chain: 1, Chain.square_dyadic(4): 2}) == 1
    assert eval(repr(chain)) == chain
    assert eval(repr(chain[0])) == chain[0]
    with pytest.raises(AttributeError):
        chain.patterns = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        chain[0].a = 2  # type: ignore[misc]

    def features(x, which):
        return x + which.in_features

    jitted = jax.jit(features, static_argnums=1)
    assert jitted(1, chain) == jitted(1, chain[0]) == 5


def test_printing_a_chain_shows_its_patterns():
    shown = str(Chain.monarch(1024, 1024))
    assert shown == (
        "1024 -> 1024: (1, 32, 32, 32)(32, 32, 32, 1), 65,536 weights, 6.2% of dense"
    )


@hypothesis.given(strategies.chains())
def test_chain_adds_up_its_patterns(chain):
    supports = [pattern.support() for pattern in chain]
    assert chain.num_weights == sum(s.sum() for s in supports)
    assert chain.flops == 2 * chain.num_weights
    assert chain.bytes_per_row(4) == 4 * sum(sum(s.shape) for s in supports)
    assert chain.shapes == tuple(pattern.shape for pattern in chain)
    product = np.linalg.multi_dot([np.eye(len(supports[0])), *supports]) > 0
    assert product.shape == (chain.out_features, chain.in_features)
    np.testing.assert_array_equal(chain.product.support(), product)
    transposed = [pattern.support() for pattern in chain.transpose]
    transposed_product = np.linalg.multi_dot([*transposed, np.eye(len(product))])
    np.testing.assert_array_equal(transposed_product > 0, product.T)
    assert chain.density == pytest.approx(product.mean())
    assert (chain @ chain.transpose).out_features == chain.out_features


def test_chain_that_cannot_be_multiplied_out():
    chain = Chain([(1, 128, 128, 3), (6, 64, 256, 1)])  # ViT-S/16 of the paper.
    assert not chain.is_chainable
    assert "128/6 is not an integer" in (chain.why_not_chainable() or "")
    with pytest.raises(ValueError, match="not chainable"):
        _ = chain.product


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "at least one pattern"),
        ([(1, 2, 3)], r"four integers \(a, b, c, d\), got \(1, 2, 3\)"),
        (
            [(1, 2, 3, 4), (2, 2, 2, 2)],
            r"factor 0 \(1, 2, 3, 4\) takes a·c·d = 12 features but factor 1 "
            r"\(2, 2, 2, 2\), which comes before it, gives a·b·d = 8",
        ),
    ],
)
def test_chain_errors(patterns, message):
    with pytest.raises(ValueError, match=message):
        Chain(patterns)


@pytest.mark.parametrize("n", [2, 4, 64, 4096])
def test_square_dyadic(n):
    chain = Chain.square_dyadic(n)
    assert len(chain) == math.log2(n)
    for i, pattern in enumerate(chain):
        assert pattern == Pattern(2**i, 2, 2, n // 2 ** (i + 1))
    assert chain.product == Pattern(1, n, n, 1)


@pytest.mark.parametrize("n", [0, 1, -4, 3, 12])
def test_square_dyadic_needs_a_power_of_two(n):
    with pytest.raises(ValueError, match=f"power of two.*got {n}"):
        Chain.square_dyadic(n)


def fewest_monarch_weights(n_in, n_out):
    """Brute force over (1, b, c, d)(a, b', c', 1) with blocks of rank 1."""
    found = []
    for a in range(2, n_in):
        for d in range(2, n_out):
            if n_in % a == 0 and n_out % d == 0 and a * d >= min(n_in, n_out):
                found.append(n_out * a + n_in * d)
    return min(found)


@hypothesis.given(st.integers(4, 120), st.integers(4, 120))
def test_monarch_is_the_smallest_of_its_kind(n_in, n_out):
    composite = [n for n in range(4, 130) if any(n % p == 0 for p in range(2, n))]
    hypothesis.assume(n_in in composite and n_out in composite)
    chain = Chain.monarch(n_in, n_out)
    left, right = chain
    assert (left.a, right.d) == (1, 1)
    assert chain.product == Pattern(1, n_out, n_in, 1)
    assert right.out_features >= min(n_in, n_out)
    assert chain.num_weights == fewest_monarch_weights(n_in, n_out)


@pytest.mark.parametrize("m", [2, 3, 16, 32, 64])
def test_monarch_of_a_square_number(m):
    n = m * m
    assert Chain.monarch(n, n) == Chain([(1, m, m, m), (m, m, m, 1)])


@pytest.mark.parametrize(
    ("n_in", "n_out", "message"),
    [
        (1021, 1024, "in_features=1021 is not a product.*are: 1020 and 1022"),
        (1024, 7, "out_features=7 is not a product.*are: 6 and 8"),
        (3, 8, "in_features=3 .*are: 4$"),
        (0, 8, "in_features must be at least 1, got 0"),
    ],
)
def test_monarch_errors_name_the_nearest_sizes(n_in, n_out, message):
    with pytest.raises(ValueError, match=message):
        Chain.monarch(n_in, n_out)


@pytest.mark.parametrize("sizes", [(4096, 1024), (96, 360), (64, 64), (768, 3072)])
@pytest.mark.parametrize("num_factors", [1, 2, 3, 4])
def test_from_shape_with_a_number_of_factors(sizes, num_factors):
    chain = Chain.from_shape(*sizes, num_factors=num_factors)
    assert len(chain) == num_factors
    assert chain.product == Pattern(1, sizes[1], sizes[0], 1)
    middles = [pattern.out_features for pattern in chain][1:]
    assert all(middle >= min(sizes) for middle in middles)


@pytest.mark.parametrize("max_block", [2, 4, 8, 64])
def test_from_shape_with_a_largest_block(max_block):
    chain = Chain.from_shape(4096, 4096, max_block=max_block)
    assert all(max(p.b, p.c) <= max_block for p in chain)
    assert len(chain) == math.ceil(12 / math.log2(max_block))
    assert chain.product == Pattern(1, 4096, 4096, 1)


def test_from_shape_keeps_rank_where_it_can():
    # 27 -> 404 = 2·2·101: a middle below 27 would lose rank.
    chain = Chain.from_shape(27, 404, num_factors=3)
    assert min(pattern.out_features for pattern in chain) >= 27


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "give one of num_factors and max_block"),
        ({"num_factors": 2, "max_block": 2}, "give one of num_factors and max_block"),
        (
            {"num_factors": 12},
            "in_features=64 is not a product of num_factors=12 .*are: 4096$",
        ),
        ({"num_factors": 0}, "num_factors must be at least 1, got 0"),
        ({"max_block": 1}, "max_block must be at least 2, got 1"),
        (
            {"num_factors": 7},
            "in_features=64 is not a product of num_factors=7 .*are: 128",
        ),
        ({"max_block": 2}, "out_features=44 has .*none: 32 and 64$"),
    ],
)
def test_from_shape_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Chain.from_shape(64, 44, **kwargs)


def test_from_shape_sizes_with_no_common_length():
    with pytest.raises(ValueError, match="the narrower end allows 2 factors"):
        Chain.from_shape(4096, 4, max_block=4)


def test_fuse():
    chain = Chain.square_dyadic(64)
    assert chain.fuse((6,)) == Chain([(1, 64, 64, 1)])
    assert chain.fuse((3, 3)) == Chain.monarch(64, 64)
    assert chain.fuse((1,) * 6) == chain
    assert chain.runs((2, 4))[1] == Chain(chain.patterns[2:])


@pytest.mark.parametrize("partition", [(), (3, 2), (7,), (6, 0), (7, -1)])
def test_partition_errors(partition):
    message = f"add up to 6.*got {re.escape(str(partition))}"
    with pytest.raises(ValueError, match=message):
        Chain.square_dyadic(64).fuse(partition)
