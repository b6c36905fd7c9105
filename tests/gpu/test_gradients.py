"""The backward pass of the kernels: how it is planned, and what it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.gpu import gradients
from butterjax.gpu.derivatives import formula
from butterjax.gpu.gradients import plan_backward
from butterjax.gpu.plan import Launch
from butterjax.numerics import tolerance
from pallas_kernels import factor as factor_kernel
from tests import gpu_interpreter, reference

MONARCH = bj.Chain.monarch(256, 256)
THREE = bj.Chain([(2, 5, 4, 3), (1, 6, 8, 4), (2, 16, 5, 1)])  # Not chainable.


@pytest.mark.parametrize(
    ("chain", "partition"),
    [
        (MONARCH, (1, 1)),
        (bj.Chain.square_dyadic(1024), (5, 5)),
        (bj.Chain.square_dyadic(64), (6,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_few_gradients_of_weights(chain, partition, dtype):
    plan = plan_backward(chain, dtype=dtype, batch=64, precision="highest")
    assert (plan.form, plan.partition) == ("launches", partition)


LARGE = [(2, 256, 256, 1), (1, 256, 256, 2)]


@pytest.mark.parametrize(
    ("chain", "numbers"),
    [
        (bj.Chain(LARGE), 10),
        # An h less than dw and dx, of two arrays each; y is not needed.
        (bj.Chain([*LARGE, LARGE[0]]), 16),
        # The one in the middle is transposed six times, read and written.
        (bj.Chain.from_shape(16384, 16384, num_factors=3), 28),
    ],
    ids=str,
)
def test_what_xla_moves(chain, numbers):
    num_bytes = 1e9 * numbers * chain.in_features  # At the rate of a copy.
    seconds = gradients._seconds_by_xla(chain, 10**9)
    assert seconds == pytest.approx(num_bytes / 4.29e12, rel=0.01)


@pytest.mark.parametrize("axis", [-1, 0])
def test_launches_until_xla_should_be_clearly_faster(axis):
    plan = functools.partial(plan_backward, dtype="bfloat16", batch=25_088, axis=axis)
    found = plan(bj.Chain.square_dyadic(1024))
    assert (found.form, found.partition) == ("launches", (5, 5))
    assert plan(bj.Chain.monarch(2048, 2048)).form == "launches"
    # Of eight h, the first takes seven launches, of blocks too large to share one.
    given_up = plan(bj.Chain(LARGE * 4))
    assert (given_up.form, given_up.partition) == ("xla", (1,) * 8)
    assert given_up.seconds > plan(bj.Chain(LARGE)).seconds


def test_what_kernels_refuse_is_for_xla(monkeypatch):
    def refuse(patterns, **_):
        if patterns.in_features == THREE.out_features:
            raise NotImplementedError("a kernel takes no such pattern")
        return [Launch("factor", (1,), patterns, factor_kernel.Config(), 1e-7)]

    monkeypatch.setattr(gradients, "plan_launches", refuse)
    plan = functools.partial(plan_backward, dtype="float32")
    assert plan(THREE, batch=7).form == "xla"
    assert plan(MONARCH, batch=8, axis=0).form == "launches"
    assert plan(MONARCH, batch=7, axis=0).form == "xla"  # 28 bytes.
    assert plan(MONARCH, batch=0).form == "xla"
    x = reference.draw((7, THREE.in_features))
    factors = reference.draw_factors(THREE, seed=1)
    dy = reference.draw((7, THREE.out_features), seed=6)
    dx, dfactors, dbias = gradients.backward(
        (x, factors, None),
        dy,
        wanted=(True, (False, True, False), None),
        axis=-1,
        precision="highest",
        preferred_element_type="float32",
        activation=None,
    )
    expected_dx, expected_dfactors = reference.gradients(x, factors, dy)
    assert reference.relative_error(dx, expected_dx) < 3e-6
    assert reference.relative_error(dfactors[1], expected_dfactors[1]) < 3e-6
    assert dfactors[0] is dfactors[2] is dbias is None


@pytest.mark.parametrize("axis", [-1, 0])
def test_two_factors_with_an_activation(few_warpgroups, axis):
    x = reference.draw((40, 256), "bfloat16", seed=1)
    factors = reference.draw_factors(MONARCH, "bfloat16", seed=2)
    bias = reference.draw((256,), "float32", seed=3)
    dy = reference.draw((40, 256), "bfloat16", seed=4)

    def apply(x, factors, bias):
        return bj.butterfly(
            x,
            factors,
            axis=axis,
            bias=bias,
            activation="silu",
            implementation="pallas_chain",
        )

    turn = np.asarray if axis == -1 else np.transpose
    with gpu_interpreter.interpreter():
        y, pull_back = jax.vjp(apply, turn(x), factors, bias)
        # Before the next kernels start: there are few threads for all.
        y.block_until_ready()
        dx, dfactors, dbias = pull_back(turn(dy))
    bound = tolerance("bfloat16", len(MONARCH))
    sums = reference.apply(x, factors) + reference.wide(bias)
    expected = reference.activate(sums, "silu")
    assert reference.relative_error(turn(y), expected) < bound
    dsums = reference.wide(dy) * reference.slope(sums, "silu")
    expected_dx, expected_dfactors = reference.gradients(x, factors, dsums)
    assert reference.relative_error(turn(dx), expected_dx) < bound
    assert reference.relative_error(dbias, dsums.sum(0)) < bound
    for actual, expected in zip(dfactors, expected_dfactors, strict=True):
        assert reference.relative_error(actual, expected) < bound


@pytest.fixture
def launches(monkeypatch):
    """Chains that were applied, by XLA in the place of kernels, and one at a time."""
    applied = []

    def apply(x, factors, *, axis, precision, bias=None, preferred_element_type=None):
        applied.append(bj.Chain.of(factors).shapes)
        return formula(
            x,
            factors,
            axis=axis,
            precision=precision,
            preferred_element_type=preferred_element_type or x.dtype,
            bias=bias,
            activation=None,
        )

    def plan(patterns, **_):
        return gradients.BackwardPlan("launches", (1,) * len(patterns), 1e-4)

    monkeypatch.setattr(gradients, "apply_launches", apply)
    monkeypatch.setattr(gradients, "plan_backward", plan)
    return applied


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(
    ("wanted", "num_launches"),
    [
        ((True, (True, True, True), True), 5),  # h, dh, h, dh, dx
        ((True, (False, False, False), False), 1),
        ((False, (True, False, False), False), 1),
        ((False, (False, True, False), False), 2),
        ((False, (False, False, True), False), 1),
        ((True, (False, True, False), True), 3),
        ((False, (False, False, False), True), 0),
    ],
    ids=str,
)
def test_only_what_is_wanted_is_computed(launches, wanted, num_launches, axis):
    x = reference.draw((7, THREE.in_features))
    factors = reference.draw_factors(THREE, seed=1)
    bias = reference.draw((THREE.out_features,), seed=5)
    dy = reference.draw((7, THREE.out_features), seed=6)
    turn = np.asarray if axis == -1 else np.transpose
    dx, dfactors, dbias = gradients.backward(
        (turn(x), tuple(map(jnp.asarray, factors)), bias),
        turn(dy),
        wanted=wanted,
        axis=axis,
        precision="highest",
        preferred_element_type="float32",
        activation=None,
    )
    assert len(launches) == num_launches
    expected_dx, expected_dfactors = reference.gradients(x, factors, dy)
    if wanted[0]:
        assert reference.relative_error(turn(dx), expected_dx) < 3e-6
    if wanted[2]:
        assert reference.relative_error(dbias, dy.sum(0, dtype=float)) < 1e-6
    for want, actual, expected in zip(
        wanted[1], dfactors, expected_dfactors, strict=True
    ):
        assert not want or reference.relative_error(actual, expected) < 3e-6


def test_nothing_but_the_operands_is_kept():
    x = jax.ShapeDtypeStruct((64, 256), "bfloat16")
    factors = tuple(jax.ShapeDtypeStruct(shape, "bfloat16") for shape in MONARCH.shapes)
    bias = jax.ShapeDtypeStruct((256,), "float32")
    apply = functools.partial(
        bj.butterfly, activation="gelu", implementation="pallas_chain"
    )

    def kept(x, factors, bias):
        _, pull_back = jax.vjp(
            lambda x, factors, bias: apply(x, factors, bias=bias), x, factors, bias
        )
        return jax.tree.leaves(pull_back)

    shapes = [one.shape for one in jax.eval_shape(kept, x, factors, bias)]
    assert sorted(shapes) == sorted([x.shape, *MONARCH.shapes, bias.shape])
