"""The search for the best chain of given sizes, against all there are."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest

from butterjax import Chain, sizes


def all_splits(n, length, smallest):
    """All ways to write n as an ordered product of so many integers."""
    if length == 0:
        return [()] if n == 1 else []
    return [
        (p, *rest)
        for p in range(smallest, n + 1)
        if n % p == 0
        for rest in all_splits(n // p, length - 1, smallest)
    ]


def chain_of(ps, qs):
    return tuple(
        (math.prod(ps[:i]), q, p, math.prod(qs[i + 1 :]))
        for i, (p, q) in enumerate(zip(ps, qs, strict=True))
    )


def cost(chain):
    """Lost rank, weights, sides of the blocks, and then the sides in their order."""
    n_out = chain[0][0] * chain[0][1] * chain[0][3]
    a, _, c, d = chain[-1]
    narrow = min(a * c * d, n_out)
    lost = sum(max(0, narrow - a * b * d) for a, b, _, d in chain[1:])
    weights = sum(math.prod(pattern) for pattern in chain)
    sides = sum(b + c for _, b, c, _ in chain)
    return lost, weights, sides, [(c, b) for _, b, c, _ in chain]


def brute_force(n_in, n_out, length, max_block):
    smallest = 2 if length > 1 else 1
    chains = [
        chain_of(ps, qs)
        for ps in all_splits(n_in, length, smallest)
        for qs in all_splits(n_out, length, smallest)
        if max(*ps, *qs) <= max_block
    ]
    return min(chains, key=cost, default=None)


@hypothesis.settings(max_examples=600, deadline=None)
@hypothesis.given(
    st.sampled_from([*range(2, 33), 36, 48, 60, 64, 72, 96, 120]),
    st.sampled_from([*range(2, 33), 36, 48, 60, 64, 72, 96, 120]),
    st.integers(1, 5),
    st.sampled_from([2, 3, 4, 6, 16, 200]),
)
def test_best_of_all_splits(n_in, n_out, length, max_block):
    expected = brute_force(n_in, n_out, length, max_block)
    assert sizes._best_split(n_in, n_out, length, max_block) == expected
    if expected and max_block == 200:
        chain = Chain.from_shape(n_in, n_out, num_factors=length)
        assert chain == Chain(expected)


@pytest.mark.parametrize(
    ("n_in", "n_out", "length"),
    [(360, 360, 3), (360, 360, 4), (144, 144, 4), (360, 24, 3), (24, 360, 3)],
)
def test_of_many_equally_good_splits_the_smallest_blocks_first(n_in, n_out, length):
    expected = brute_force(n_in, n_out, length, 360)
    assert sizes._best_split(n_in, n_out, length, 360) == expected


@pytest.mark.parametrize(
    ("n_in", "n_out", "length", "max_block"),
    [(48, 36, 3, 48), (96, 16, 4, 96), (16, 96, 4, 12), (64, 64, 5, 8), (72, 8, 3, 9)],
)
def test_no_way_on_takes_less_than_the_bound(n_in, n_out, length, max_block):
    search = sizes._Search(n_in, n_out, length, max_block)
    for ps in all_splits(n_in, length, 2):
        for qs in all_splits(n_out, length, 2):
            chain = chain_of(ps, qs)
            if max(*ps, *qs) > max_block or cost(chain)[0]:
                continue  # What the search does not look at.
            for done in range(length):
                bound = search._least_after(
                    math.prod(ps[:done]), math.prod(qs[:done]), length - done
                )
                assert bound <= cost(chain[done:])[1] * (1 + 1e-12)


# What a search of all divisors of 720720 would take: 53 million steps a factor.
@pytest.mark.parametrize(
    ("n_in", "n_out", "num_factors"),
    [
        (720720, 720720, 2),
        (720720, 720720, 4),
        (720720, 720720, 6),
        (5040, 20160, 6),
        (30720, 122880, 4),
        (510510, 720720, 6),
        (1_000_000, 720720, 6),
        (997920, 64, 6),
        (4320, 753480, 4),
        (856800, 876960, 6),
    ],
)
def test_many_divisors_take_few_steps(n_in, n_out, num_factors, monkeypatch):
    monkeypatch.setattr(sizes, "_MOST_STEPS", 25_000)
    sizes._best_split.cache_clear()
    chain = Chain.from_shape(n_in, n_out, num_factors=num_factors)
    assert len(chain) == num_factors
    assert chain.product.shape == (1, n_out, n_in, 1)
    # No fewer weights than the mean of factors as narrow as the narrower end.
    root = (n_in * n_out / min(n_in, n_out)) ** (1 / num_factors)
    assert chain.num_weights >= num_factors * min(n_in, n_out) * root * (1 - 1e-9)


def test_a_search_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(sizes, "_MOST_STEPS", 100)
    sizes._best_split.cache_clear()
    message = "in_features=720720 and out_features=720720 split into 6 factors in too"
    with pytest.raises(ValueError, match=message):
        Chain.from_shape(720720, 720720, num_factors=6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        # Were all sizes tried, half a million of them would be factored.
        ({"num_factors": 19}, "in_features=999983 .* are: 524288 and 1048576$"),
        ({"max_block": 2}, "in_features=999983 .* none: 524288 and 1048576$"),
        ({"max_block": 16}, "in_features=999983 .* none: [0-9]+ and 1000000$"),
        ({"num_factors": 10**9}, "num_factors=1000000000 is more than"),
    ],
)
def test_errors_come_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Chain.from_shape(999983, 2**19, **kwargs)


def test_sizes_beyond_those_of_an_axis():
    message = "in_features must be at most 2147483647, got 1000000000000"
    with pytest.raises(ValueError, match=message):
        Chain.from_shape(10**12, 64, num_factors=3)


@pytest.mark.parametrize("n", [1, 2, 12, 97, 360, 1024, 720720])
def test_divisors(n):
    assert sizes.divisors(n) == [m for m in range(1, n + 1) if n % m == 0]
