import dataclasses

import jax
import pytest

from benchmarks import kernels
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import factor


def workload(spec, *, batch=25088, layout="feature_last", dtype="bfloat16"):
    return Workload(spec, parse_chain(spec), batch, dtype, layout, "forward")


CASES = [
    ("factor", workload("(4,48,192,16)", dtype="float16")),
    ("factor", workload("(1,64,64,64)", layout="feature_first")),
    ("radix", workload("(1,2,2,512)")),
    ("radix", workload("(16,4,4,16)", layout="feature_first", dtype="float16")),
]


@pytest.mark.parametrize(("name", "work"), CASES, ids=str)
def test_candidates_fit_and_are_few(name, work):
    kernel = kernels.KERNELS[name]
    found = kernels.candidates(kernel, work, 8)
    assert len(found) == len(set(found)) == 8
    assert found[0] == kernels.rule_config(kernel, work)
    assert found[:3] == kernels.candidates(kernel, work, 3)
    for config in found:
        function = kernels.call(kernel, work, config)
        y = jax.eval_shape(function, *kernels.abstract_arguments(work))
        features, along = work.chain.out_features, work.axis
        assert (y.shape[along], y.shape[1 + along]) == (features, work.batch)


def test_large_blocks_are_compared_with_other_products():
    found = kernels.candidates(kernels.KERNELS["factor"], workload("(1,256,256,1)"), 8)
    assert found[0].wgmma
    assert {config.wgmma for config in found} == {False, True}
    assert {config.resident for config in found if config.wgmma} == {False, True}
    assert len({(config.rows, config.features) for config in found}) > 3


def test_a_workload_that_is_refused():
    kernel = kernels.KERNELS["factor"]
    with pytest.raises(NotImplementedError, match="16 bytes"):
        kernels.candidates(kernel, workload("(1,3,5,1)"), 3)


@pytest.mark.parametrize("kernel", kernels.KERNELS.values(), ids=lambda k: k.name)
def test_entries(kernel):
    fields = {field.name for field in dataclasses.fields(kernel.config)}
    assert kernel.grid.keys() <= fields
    by_rule = kernels.rule_config(kernel, workload(kernel.example))
    assert kernels.configuration(by_rule).keys() == fields


def test_kernels_are_tuned_for_what_they_are_launched_on():
    of_factor = kernels.KERNELS["factor"].is_launched_on
    of_radix = kernels.KERNELS["radix"].is_launched_on
    monarch = workload("monarch:2048x2048", layout="feature_first")
    assert [len(one) for one in of_factor(monarch, None)] == [1, 1]
    assert of_radix(monarch, None) == ()
    small = workload("square_dyadic:1024", layout="feature_first")
    assert [one.shapes for one in of_radix(small, None)] == [
        (shape,) for shape in small.chain.shapes
    ]


def test_configuration_is_what_makes_a_config():
    config = factor.Config(rows=64, stages=3)
    assert factor.Config(**kernels.configuration(config)) == config
