import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernel_checks, launched, workloads
from benchmarks.cases import parse_chain
from benchmarks.kernel_checks import Check
from benchmarks.workers import Lost
from benchmarks.workloads import Workload
from butterjax.gpu.plan import plan_launches
from butterjax.numerics import tolerance
from tests import reference
from tests.benchmarks.test_results import ENVIRONMENT

SPEC = "(2,8,4,3)(3,4,8,2)"


def check(layout="feature_last", dtype="float32", direction="forward", **kwargs):
    work = Workload(SPEC, parse_chain(SPEC), 10, dtype, layout, direction)
    return Check("pallas_chain", work, **kwargs)


def with_gradients(layout="feature_last", **kwargs):
    return check(layout, direction="forward+backward", precision="highest", **kwargs)


@functools.cache
def drawn(one):
    return kernel_checks.draw(one, 0)


@functools.cache
def right(one):
    """The call that a check is of, by XLA."""
    axis = one.workload.axis

    def call(x, factors, bias=None):
        rows = x if axis == -1 else x.T
        for w in reversed(factors):
            a, b, c, d = w.shape
            blocks = rows.reshape(-1, a, c, d)
            y = jnp.einsum("ijlk,nilk->nijk", w, blocks, precision="highest")
            rows = y.reshape(-1, a * b * d)
        if bias is not None:
            rows = rows + bias
        if one.activation == "relu":
            rows = jnp.maximum(rows, 0)
        if one.activation == "gelu":
            rows = jax.nn.gelu(rows)
        return rows if axis == -1 else rows.T

    def both(dy, *arguments):
        y, pull_back = jax.vjp(call, *arguments)
        return y, *pull_back(dy)

    return jax.jit(both if one.has_gradients else call)


VARIANTS = [
    check(),
    check("feature_first"),
    check(has_bias=True, activation="relu"),
    check("feature_first", has_bias=True),
    with_gradients(),
    with_gradients("feature_first", has_bias=True),
    with_gradients(has_bias=True, activation="gelu"),
]


@pytest.mark.parametrize("one", VARIANTS, ids=lambda one: one.name)
def test_what_is_right_passes(one):
    error, failed = kernel_checks.judge(one, right(one), drawn(one))
    assert failed is None
    assert 0 < error < tolerance("float32", 2)


def test_the_truth_is_that_of_the_definition():
    one = check(has_bias=True, activation="relu")
    inputs = drawn(one)
    x, factors, bias = inputs.arguments
    sums = reference.apply(x, factors) + np.asarray(bias, float)
    (exact,) = inputs.exact
    np.testing.assert_allclose(exact, np.maximum(sums, 0), atol=1e-12)


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
def test_the_true_gradients(layout):
    one = with_gradients(layout, has_bias=True)
    inputs = drawn(one)
    dy, x, factors, bias = inputs.arguments
    if layout == "feature_first":
        dy, x = dy.T, x.T
    y, dx, *dfactors, dbias = inputs.exact
    sums = reference.apply(x, factors) + np.asarray(bias, float)
    np.testing.assert_allclose(y, sums, atol=1e-12)
    expected = reference.gradients(x, factors, dy)
    np.testing.assert_allclose(dx, expected[0], atol=1e-12)
    for actual, right_one in zip(dfactors, expected[1], strict=True):
        np.testing.assert_allclose(actual, right_one, atol=1e-12)
    np.testing.assert_allclose(dbias, np.asarray(dy, float).sum(0), atol=1e-12)


def broken(how, one):
    calls = []

    def call(*arguments):
        calls.append(None)
        y = right(one)(*arguments)
        match how:
            case "one vector":
                return y.at[7].multiply(1.001)
            case "one entry":
                return y.at[7, 3].set(jnp.nan)
            case "type":
                return y.astype(jnp.bfloat16)
            case "shape":
                return y[:-1]
            case "order":  # Within the tolerance, but not the same every time.
                return y * (1 + 1e-7 * len(calls))
            case "unwritten":  # The second call finds the first one's result.
                return y if len(calls) == 1 else y.at[9].set(y[0])

    return call


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("one vector", "1 of 10 vectors are further from float64 .* first is 7"),
        ("one entry", "1 vectors are not finite, the first is 7"),
        ("type", "the result is bfloat16 and not float32"),
        ("shape", "the result has shape"),
        ("order", "changes with the order"),
        ("unwritten", "changes with the order"),
    ],
)
def test_what_is_wrong_is_seen(how, words):
    one = dataclasses.replace(check(), precision="highest")
    inputs = drawn(one)
    _, failed = kernel_checks.judge(one, broken(how, one), inputs)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(failed)


def broken_gradients(how, one):
    calls = []

    def call(*arguments):
        calls.append(None)
        y, dx, (dw, *rest), dbias = right(one)(*arguments)
        match how:
            case "one vector":
                dx = dx.at[7].multiply(1.001)
            case "a factor":
                rest = [1.001 * w for w in rest]
            case "bias":
                dbias = jnp.zeros_like(dbias)
            case "not a number":
                dw = dw.at[0, 0, 0, 0].set(jnp.nan)
            case "every time":
                dw = dw * (1 + 1e-7 * len(calls))
        return y, dx, (dw, *rest), dbias

    return call


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("one vector", "the gradient in x: 1 of 10 vectors .* the first is 7"),
        ("a factor", r"the gradient in factors\[1\]: 1 of 1 vectors are further"),
        ("bias", "the gradient in bias: .* further"),
        ("not a number", r"the gradient in factors\[0\]: 1 vectors are not finite"),
        ("every time", "changes from call to call"),
    ],
)
def test_wrong_gradients_are_seen(how, words):
    one = with_gradients(has_bias=True)
    inputs = drawn(one)
    _, failed = kernel_checks.judge(one, broken_gradients(how, one), inputs)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(failed)


def test_results_and_gradients_are_held_to_the_tolerance_of_the_library():
    for direction in ("forward", "forward+backward"):
        tf32 = tolerance("float32", 2, tf32=True)
        assert check(direction=direction).tolerance == tf32
        one = check(direction=direction, precision="highest")
        assert one.tolerance == tolerance("float32", 2)
        one = check(direction=direction, dtype="bfloat16")
        assert one.tolerance == tolerance("bfloat16", 2)


def row(one, kernels=("factor",), **changes):
    fields = {"error": None, "unsupported": None, "failed": None, "is_lost": False}
    return kernel_checks.Row(
        ENVIRONMENT, "s", one, kernels, 1.0, **{**fields, **changes}
    )


def test_summary():
    one = check()
    good = [row(one, error=0.1), row(one, unsupported="no")]
    assert kernel_checks.summary(good) == []
    (problem,) = kernel_checks.summary([row(one, failed="bad"), *good])
    assert problem.endswith("float32 feature_last: bad")


def test_a_change_of_the_sources_is_a_new_check():
    one = check()
    keys = {row(one).key, kernel_checks.key(ENVIRONMENT, "other", one)}
    assert len(keys) == 2
    assert len(kernel_checks.sources()) == 16


def test_what_a_lost_form_excludes():
    one = row(check(), ("factor",)).form
    lost = [one]
    for other, is_excluded in (
        (row(check(), ("factor",)), True),
        (row(check(), ("factor", "strided")), True),
        (row(check(), ("strided",)), False),
        (row(check("feature_first"), ("factor",)), False),
        (row(check(dtype="float16"), ("factor",)), False),
        (row(with_gradients(), ("factor",)), False),
    ):
        assert (other.form.excluded_by(lost) is not None) == is_excluded
    assert one.excluded_by([]) is None
    assert row(check(), None).form is None


def run(one, excluded=()):
    told = []
    task = kernel_checks.Task(one, ENVIRONMENT, excluded, 0)
    return kernel_checks.run(task, lambda doing, _: told.append(doing)), told


def test_a_check_is_made(monkeypatch):
    # XLA's can run here, and launches no kernel.
    one = dataclasses.replace(check(), implementation="bmm", precision="highest")
    found, told = run(one)
    assert found.failed is None
    assert 0 < found.error < found.tolerance
    assert found.kernels == ()
    assert told == ["tracing", "compiling", "drawing", "running "]

    def refuse(*args, **kwargs):
        raise NotImplementedError("too wide")

    monkeypatch.setattr(kernel_checks.bj, "butterfly", refuse)
    refused, _ = run(one)
    assert refused.unsupported == "too wide"


def test_a_kernel_that_does_not_compile_is_wrong():
    work = dataclasses.replace(check().workload, dtype="bfloat16")
    one = dataclasses.replace(check(), workload=work)  # There is no GPU.
    found, told = run(one)
    assert "does not compile: " in found.failed
    assert found.kernels
    assert told == ["tracing", "compiling"]
    excluded, told = run(one, (found.form,))
    assert "a process was lost to" in excluded.failed
    assert told == ["tracing"]


def test_the_row_of_what_was_lost():
    task = kernel_checks.Task(check(), ENVIRONMENT, (), 0)
    while_running = kernel_checks.lost_row(task, Lost("running a b", "it died"))
    assert while_running.kernels == ("a", "b")
    assert while_running.is_lost
    before = kernel_checks.lost_row(task, Lost("tracing", "it died"))
    assert (before.kernels, before.is_lost) == (None, False)
    assert before.failed == "it died, tracing"


def test_checks_are_few_and_broad():
    found = kernel_checks.checks(workloads.DTYPES, list(workloads.LAYOUTS))
    assert len({one.name for one in found}) == len(found) < 200
    first = found[: 2 * len(kernel_checks.CORE)]  # One of each form.
    assert {one.workload.case for one in first} == set(kernel_checks.CORE)
    for dtype in workloads.DTYPES:
        for layout in workloads.LAYOUTS:
            mine = [
                one
                for one in found
                if (one.workload.dtype, one.workload.layout) == (dtype, layout)
            ]
            assert {one.has_gradients for one in mine} == {False, True}
            assert any(one.activation and one.has_bias for one in mine)
    assert {one.activation for one in found} == {None, "relu", "gelu", "silu"}
    batches = {one.workload.batch for one in found}
    assert max(batches) > 20_000
    assert min(batches) == 1
    few = kernel_checks.checks(["float16"], ["feature_first"])
    assert few == [
        one
        for one in found
        if (one.workload.dtype, one.workload.layout) == ("float16", "feature_first")
    ]


@pytest.mark.parametrize("spec", kernel_checks.CORE)
def test_each_form_is_launched(spec):
    for layout in workloads.LAYOUTS.values():
        assert plan_launches(
            parse_chain(spec), dtype="bfloat16", batch=kernel_checks.RAGGED, axis=layout
        )


def test_gradients_of_weights_have_their_kernel():
    every = kernel_checks.checks(["bfloat16"], ["feature_last"])
    (one,) = [
        one
        for one in every
        if one.has_gradients and one.workload.case == "(2,32,64,16)"
    ]
    function, arguments = kernel_checks.function(one), kernel_checks.abstract(one)
    traced = jax.jit(function).trace(*arguments)
    assert "weight_gradient" in launched.kernels(traced)
