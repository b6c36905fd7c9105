import dataclasses

import jax
import pytest

from benchmarks import kernels
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import chain


def workload(spec, *, batch=25088, layout="feature_last", dtype="bfloat16"):
    return Workload(spec, parse_chain(spec), batch, dtype, layout, "forward")


CASES = [
    ("chain", workload("monarch:1024x1024")),
    ("chain", workload("monarch:2048x2048", layout="feature_first")),
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


def test_what_is_to_be_compared_first():
    found = kernels.candidates(
        kernels.KERNELS["chain"], workload("monarch:1024x1024"), 3
    )
    assert [(config.rows, config.stages) for config in found[1:]] == [(64, 2), (32, 1)]


def test_large_blocks_are_compared_with_other_products():
    found = kernels.candidates(kernels.KERNELS["factor"], workload("(1,256,256,1)"), 8)
    assert found[0].wgmma
    assert {config.wgmma for config in found} == {False, True}
    assert {config.resident for config in found if config.wgmma} == {False, True}
    assert len({(config.rows, config.features) for config in found}) > 3


def test_a_workload_that_is_refused():
    kernel = kernels.KERNELS["chain"]
    with pytest.raises(NotImplementedError, match="chain"):
        kernels.candidates(kernel, workload("monarch:65536x65536"), 3)


@pytest.mark.parametrize("kernel", kernels.KERNELS.values(), ids=lambda k: k.name)
def test_entries(kernel):
    fields = {field.name for field in dataclasses.fields(kernel.config)}
    assert kernel.grid.keys() <= fields
    assert kernels.configuration(kernel.config()).keys() == fields
    for spec in kernel.checked:
        parse_chain(spec)


def test_kernels_are_tuned_for_what_they_are_launched_on():
    of_chain = kernels.KERNELS["chain"].is_launched_on
    (collapsed,) = of_chain(workload("square_dyadic:1024"), None)
    assert len(collapsed) < 10
    assert collapsed.out_features == 1024
    monarch = workload("monarch:1024x1024")
    assert of_chain(monarch, None) == (monarch.chain,)
    of_factor = kernels.KERNELS["factor"].is_launched_on
    assert [len(one) for one in of_factor(monarch, None)] == [1, 1]
    of_radix = kernels.KERNELS["radix"].is_launched_on
    small = workload("square_dyadic:1024")
    assert [one.shapes for one in of_radix(small, None)] == [
        (shape,) for shape in small.chain.shapes
    ]
    assert of_factor(small, None) == of_radix(monarch, None) == ()


def test_configuration_is_what_makes_a_config():
    config = chain.Config(rows=64, stages=3)
    assert chain.Config(**kernels.configuration(config)) == config
