import jax
import numpy as np
import pytest

import butterjax as bj
from benchmarks import workloads
from tests import reference

CHAIN = bj.Chain.monarch(24, 60)


def workload(layout, direction, dtype="float32"):
    return workloads.Workload(
        case="monarch:24x60",
        chain=CHAIN,
        batch=5,
        dtype=dtype,
        layout=layout,
        direction=direction,
    )


def expected_outputs(work, inputs, weights):
    """y and, where asked for, the gradients in x and in the weights."""
    features_last = work.layout == "feature_last"
    x, dy = np.asarray(inputs.x), np.asarray(inputs.dy)
    x, dy = (x, dy) if features_last else (x.T, dy.T)
    dx, dfactors = reference.gradients(x, weights, dy)
    outputs = [reference.apply(x, weights), dx]
    if not features_last:
        outputs = [output.T for output in outputs]
    return outputs[:1] if work.direction == "forward" else [*outputs, *dfactors]


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
@pytest.mark.parametrize("direction", workloads.DIRECTIONS)
@pytest.mark.parametrize("implementation", [None, "einsum"])
def test_chain(layout, direction, implementation):
    work = workload(layout, direction)
    inputs = workloads.draw(work, seed=0)
    function, arguments = workloads.program(work, implementation, inputs)
    outputs = jax.tree.leaves(function(*arguments))
    expected = expected_outputs(work, inputs, inputs.factors)
    assert workloads.worst_error(outputs, expected) < 1e-6
    truth = workloads.truth(work, inputs, dense_layer=False)
    assert workloads.worst_error(truth, expected) < 1e-6
    assert all(output.dtype == np.float64 for output in truth)


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
@pytest.mark.parametrize("direction", workloads.DIRECTIONS)
def test_dense_layer(layout, direction):
    work = workload(layout, direction)
    inputs = workloads.draw(work, seed=0)
    matrix = np.asarray(inputs.kernel)
    matrix = matrix.T if layout == "feature_last" else matrix
    assert matrix.shape == (60, 24)
    expected = expected_outputs(work, inputs, [matrix[None, :, :, None]])
    if direction == "forward+backward":
        dmatrix = expected[2][0, :, :, 0]
        expected[2] = dmatrix.T if layout == "feature_last" else dmatrix
    function, arguments = workloads.program(work, workloads.DENSE_LAYER, inputs)
    outputs = jax.tree.leaves(function(*arguments))
    assert workloads.worst_error(outputs, expected) < 1e-6
    truth = workloads.truth(work, inputs, dense_layer=True)
    assert workloads.worst_error(truth, expected) < 1e-6


def test_truth_is_of_the_inputs_as_they_are():
    work = workload("feature_last", "forward", "bfloat16")
    inputs = workloads.draw(work, seed=0)
    assert inputs.x.dtype == "bfloat16"
    (truth,) = workloads.truth(work, inputs, dense_layer=False)
    exact = reference.apply(inputs.x, inputs.factors)
    assert reference.relative_error(truth, exact) < 1e-14


def test_worst_error():
    exact = [np.ones(4), np.full(4, 2.0)]
    assert workloads.worst_error(exact, exact) == 0
    off = [np.ones(4), np.array([2.0, 2.0, 2.0, 3.0])]
    assert workloads.worst_error(off, exact) == pytest.approx(0.25)
    nan = [np.array([1.0, np.nan, 1.0, 1.0]), exact[1]]
    assert workloads.worst_error(nan, exact) == float("inf")


def test_floor_bytes():
    work = workload("feature_last", "forward", "bfloat16")
    assert work.floor_bytes == 2 * (5 * (24 + 60) + CHAIN.num_weights)


def test_input_keeps_the_variance():
    work = workloads.Workload(
        "", bj.Chain.monarch(400, 400), 100, "float32", "feature_first", "forward"
    )
    inputs = workloads.draw(work, seed=1)
    x = np.asarray(inputs.x).T
    assert x.shape == (100, 400)
    assert np.std(reference.apply(x, inputs.factors)) == pytest.approx(1, rel=0.1)
    assert np.std(inputs.kernel @ inputs.x) == pytest.approx(1, rel=0.1)
    other = workloads.draw(work, seed=2)
    assert not np.array_equal(inputs.x, other.x)
