import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernel_checks, kernels, workloads
from benchmarks.cases import parse_chain
from benchmarks.kernel_checks import Check
from benchmarks.workloads import Workload
from tests import reference
from tests.benchmarks.test_results import ENVIRONMENT

SPEC = "(2,8,4,3)(3,4,8,2)"


def check(layout="feature_last", dtype="float32", direction="forward", **kwargs):
    work = Workload(SPEC, parse_chain(SPEC), 10, dtype, layout, direction)
    return Check("chain", work, **kwargs)


def with_gradients(layout="feature_last", **kwargs):
    return check(layout, direction="forward+backward", precision="highest", **kwargs)


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
    with_gradients(has_bias=True, activation="relu"),
]


@pytest.mark.parametrize("one", VARIANTS, ids=lambda one: one.name)
def test_what_is_right_passes(one):
    error, failed = kernel_checks.judge(one, right(one), kernel_checks.draw(one, 0))
    assert failed is None
    assert 0 < error < 1e-6


def test_the_truth_is_that_of_the_definition():
    one = check(has_bias=True, activation="relu")
    inputs = kernel_checks.draw(one, 0)
    x, factors, bias = inputs.arguments
    sums = reference.apply(x, factors) + np.asarray(bias, float)
    (exact,) = inputs.exact
    np.testing.assert_allclose(exact, np.maximum(sums, 0), atol=1e-12)


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
def test_the_true_gradients(layout):
    one = with_gradients(layout, has_bias=True)
    inputs = kernel_checks.draw(one, 0)
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
    inputs = kernel_checks.draw(one, 0)
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
    inputs = kernel_checks.draw(one, 0)
    _, failed = kernel_checks.judge(one, broken_gradients(how, one), inputs)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(failed)


def test_float32_is_held_to_what_its_pieces_keep():
    assert check().tolerance == 2 * 2**-15
    assert check(precision="highest").tolerance == 2e-6
    assert check(dtype="bfloat16").tolerance == 2e-2


def row(one, *, unsupported=None, failed=None):
    return kernel_checks.Row(ENVIRONMENT, "s", one, 1.0, None, unsupported, failed)


def test_summary():
    first, last = check(), check("feature_first")
    assert kernel_checks.summary([row(first), row(last)]) == []
    assert kernel_checks.summary([row(first), row(first, unsupported="no")]) == []
    (problem,) = kernel_checks.summary([row(first, failed="bad"), row(last)])
    assert problem.endswith("float32 feature_last: bad")
    (problem,) = kernel_checks.summary([row(first), row(last, unsupported="no")])
    assert problem == "chain float32 feature_first: every check is refused"


def test_a_change_of_the_sources_is_a_new_check():
    one = check()
    keys = {row(one).key, kernel_checks.key(ENVIRONMENT, "other", one)}
    assert len(keys) == 2
    assert len(kernel_checks.sources()) == 16


def all_checks():
    everything = list(kernels.KERNELS.values())
    layouts = list(workloads.LAYOUTS)
    return list(kernel_checks.checks(everything, workloads.DTYPES, layouts))


def test_checks_cover_what_kernels_offer():
    found = all_checks()
    assert len({one.name for one in found}) == len(found)
    for name, kernel in kernels.KERNELS.items():
        mine = [one for one in found if one.kernel == name]
        pairs = {(one.workload.dtype, one.workload.layout) for one in mine}
        assert pairs == {(t, l) for t in kernel.dtypes for l in workloads.LAYOUTS}
        for pair in pairs:
            for has_gradients in (False, True):
                some = [
                    one
                    for one in mine
                    if (one.workload.dtype, one.workload.layout) == pair
                    and one.has_gradients == has_gradients
                ]
                activations = {one.activation for one in some if one.has_bias}
                assert activations == {None, "relu", "gelu", "silu"}
                assert max(one.workload.batch for one in some) > 20_000
                cases = {one.workload.case for one in some}
                is_first = pair[0] == kernel.dtypes[0]
                everything = is_first or not has_gradients
                assert cases == set(kernel.checked[: None if everything else 1])


def test_few_checks_are_refused():
    refused: dict[tuple[str, str], list[bool]] = {}
    for one in all_checks():
        if (
            one.has_gradients
            or one.workload.layout == "feature_first"
            or one != Check(one.kernel, one.workload)
        ):
            continue
        try:
            jax.eval_shape(kernel_checks.function(one), *kernel_checks.abstract(one))
        except NotImplementedError:
            is_refused = True
        else:
            is_refused = False
        group = (one.kernel, one.workload.dtype)
        refused.setdefault(group, []).append(is_refused)
        if one.kernel == "chain" and one.workload.case in (
            *("monarch:256x256", "monarch:1024x1024", "monarch:2048x2048"),
        ):
            assert not is_refused or one.workload.dtype == "float32", one.name
    for (kernel, dtype), outcomes in refused.items():
        share = 0.8 if dtype == "float32" else 0.25
        assert sum(outcomes) <= share * len(outcomes), (kernel, dtype)
