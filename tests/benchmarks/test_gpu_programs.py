import dataclasses
import functools
import io

import jax
import pytest
from rich.console import Console

import butterjax as bj
from benchmarks import aot, gpu_cases, gpu_programs, hlo, jsonl, ptx, sass, workloads
from benchmarks.environment import Environment
from tests.benchmarks.kernel_facts import KERNEL

ENVIRONMENT = Environment("2026-01-01T00:00:00+00:00", "a device", {}, None, None)
WORKLOAD = workloads.Workload(
    "monarch:16x16", bj.Chain.monarch(16, 16), 8, "float32", "feature_last", "forward"
)


def make_facts(launches=1, moved_bytes=0, kernels=(KERNEL,)):
    launch = hlo.Launch("kernel.1", "mosaic_gpu_v2", launches, moved_bytes, 8_000_000)
    memory = aot.Memory(argument=8, output=8, temporary=2_500_000, peak=7_500_000)
    return aot.Facts((launch,), memory, kernels)


def beside(facts):
    """The same with a launch of XLA's own before the kernels."""
    other = hlo.Launch("fusion.1", "fusion", 1, 0, 64)
    return dataclasses.replace(facts, launches=(other, *facts.launches))


def make_row(**changes):
    row = gpu_programs.Row(
        environment=ENVIRONMENT,
        workload=WORKLOAD,
        implementation="pallas",
        compiler_options={},
        facts=make_facts(),
        unsupported=None,
        error=None,
        problems=(),
    )
    return dataclasses.replace(row, **changes)


def test_cases():
    names = [case.name for case in gpu_cases.CASES]
    assert len(set(names)) == len(names)
    for case in gpu_cases.CASES:
        workload = case.workload("forward")
        assert workload.layout in workloads.LAYOUTS
        assert len(workload.chain) >= 1
    sizes = {
        (workload.chain.in_features, workload.chain.out_features)
        for workload in (case.workload("forward") for case in gpu_cases.CASES)
    }
    assert sizes >= {(n, n) for n in (512, 768, 1024, 2048, 4096)}
    assert sizes >= {(768, 3072), (3072, 768)}


def test_select():
    every = list(gpu_cases.CASES)
    assert gpu_cases.select(["*"]) == every
    chosen = gpu_cases.select(["monarch:1024", "*/float16/*"])
    assert chosen == [
        case
        for case in every
        if case.chain.startswith("monarch:1024") or case.dtype == "float16"
    ]
    assert 0 < len(chosen) < len(every)
    new = "(2,48,192,4)/16/float32/feature_first"
    assert gpu_cases.select([new]) == [
        gpu_cases.Case("(2,48,192,4)", 16, "float32", "feature_first")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", "no case is named 'no_such'"),
        ("monarch:7x9/1/float16/feature_last", "in_features=7"),
        ("monarch:8x9/0/float16/feature_last", "batch"),
        ("monarch:8x9/1/float8/feature_last", "dtype must be one of float32"),
        ("monarch:8x9/1/float16/last", "layout must be one of feature_last"),
    ],
)
def test_no_case(name, message):
    with pytest.raises(ValueError, match=message):
        gpu_cases.select([name])


def test_parse_options():
    options = ["xla_a=false", "xla_b=True", "xla_c=x=1"]
    expected = {"xla_a": False, "xla_b": True, "xla_c": "x=1"}
    assert gpu_programs.parse_options(options) == expected


CASE = gpu_cases.Case("monarch:16x16", launches=1, too_much_for=("bcsr",))


@pytest.mark.parametrize(
    ("implementation", "direction", "outcome", "problems"),
    [
        ("bmm", "forward", {"facts": make_facts(9, 99, ())}, []),
        ("bmm", "forward", {"unsupported": "too wide"}, []),
        ("bmm", "forward", {"error": "crash"}, ["it does not compile: crash"]),
        ("bcsr", "forward", {"error": "crash"}, []),
        # Two factors: two launches of one kernel, or one of the other.
        ("pallas", "forward", {"facts": make_facts(2)}, []),
        ("pallas", "forward", {"facts": make_facts(3)}, ["3 kernel launches"]),
        ("pallas", "forward", {"facts": beside(make_facts(2))}, ["beside the kernels"]),
        (
            "pallas_chain",
            "forward",
            {"facts": beside(make_facts(1))},
            ["beside the kernels"],
        ),
        ("pallas", "forward", {"unsupported": "too wide"}, ["it refuses: too wide"]),
        ("pallas_chain", "forward", {"facts": make_facts(1)}, []),
        ("pallas_chain", "forward", {"facts": make_facts(2)}, ["2 kernel launches"]),
        ("pallas_chain", "forward+backward", {"facts": make_facts(5, 999)}, []),
        # The weights, 2·4·4·4 bfloat16, may be put in order.
        ("pallas_chain", "forward", {"facts": make_facts(1, 256)}, []),
        ("pallas_chain", "forward", {"facts": make_facts(1, 257)}, ["only transposes"]),
        ("pallas_chain", "forward", {"facts": make_facts(1, 0, ())}, ["no Mosaic GPU"]),
        ("pallas_chain", "forward", {"unsupported": "too wide"}, ["it refuses"]),
    ],
)
def test_judge(implementation, direction, outcome, problems):
    outcome = {"facts": None, "unsupported": None, "error": None} | outcome
    found = gpu_programs.judge(CASE, direction, implementation, **outcome)
    assert len(found) == len(problems)
    for problem, words in zip(found, problems, strict=True):
        assert words in problem


def test_weights_may_be_put_in_order_where_a_case_says_so():
    case = dataclasses.replace(CASE, is_arranged=True)
    outcome = {"facts": beside(make_facts(1)), "unsupported": None, "error": None}
    assert gpu_programs.judge(case, "forward", "pallas_chain", **outcome) == ()
    outcome["facts"] = make_facts(1, 257)  # That is x.
    assert gpu_programs.judge(case, "forward", "pallas_chain", **outcome) != ()
    case = dataclasses.replace(case, is_transposed=True)
    assert gpu_programs.judge(case, "forward", "pallas_chain", **outcome) == ()


LOOP = sass.Loop(
    instructions=64,
    products=8,
    sums=4,
    shared=8,
    wavefronts=32,
    barriers=2,
    waits=1,
    copies=1,
)
LIMITS = gpu_cases.Limits(instructions=8.0, wavefronts=4.0, barriers=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"instructions": 65}, ["8.12 instructions for a product, more than 8"]),
        ({"wavefronts": 33, "barriers": 3}, ["4.12 wavefronts", "3 barriers"]),
    ],
)
@pytest.mark.parametrize("direction", workloads.DIRECTIONS)
def test_limits_of_main_loops(changes, words, direction):
    is_forward = direction == "forward"
    case = dataclasses.replace(
        CASE, **{"limits" if is_forward else "backward_limits": LIMITS}
    )
    kernel = dataclasses.replace(KERNEL, loop=dataclasses.replace(LOOP, **changes))
    judge = functools.partial(
        gpu_programs.judge,
        case,
        direction,
        facts=make_facts(1, kernels=(KERNEL, kernel)),
        unsupported=None,
        error=None,
    )
    missing, *found = judge("pallas_chain")
    assert missing == "kernel body_0 has no loop with products of tensor cores"
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))
    assert judge("pallas") == ()


def test_what_targets_are_set_for_has_limits():
    cases = {case.name: case for case in gpu_cases.CASES}
    for n in (1024, 2048, 4096):
        for layout in workloads.LAYOUTS:
            case = cases[f"monarch:{n}x{n}/25088/bfloat16/{layout}"]
            assert case.limits
            assert case.backward_limits or n == 4096
    singles = [case for case in cases.values() if case.limits and case.launches == 1]
    patterns = [case.workload("forward").chain[0] for case in singles]
    assert {pattern.d > 1 for pattern in patterns} == {False, True}


def test_cases_of_ones_own_may_be_refused():
    case = gpu_cases.Case("monarch:16x16")
    outcome = {"facts": None, "unsupported": "too wide", "error": None}
    assert gpu_programs.judge(case, "forward", "pallas_chain", **outcome) == ()


def test_a_refusal_is_a_row(monkeypatch):
    def refuse(function, arguments, *, options):
        assert options == {"xla_a": True}
        assert jax.tree.map(lambda a: a.shape, arguments) == (
            (4096, 16),
            ((1, 4, 4, 4), (4, 4, 4, 1)),
        )
        raise NotImplementedError("not this")

    monkeypatch.setattr(aot, "compile_for_gpu", refuse)
    row = gpu_programs.compile_one(
        CASE, "forward", "bmm", environment=ENVIRONMENT, options={"xla_a": True}
    )
    assert row.unsupported == "not this"
    assert row.facts is row.error is None
    assert row.problems == ()


def test_a_failure_is_a_row(monkeypatch):
    def fail(function, arguments, *, options):
        raise aot.CompilationError("crash")

    monkeypatch.setattr(aot, "compile_for_gpu", fail)
    row = gpu_programs.compile_one(
        CASE, "forward", "bmm", environment=ENVIRONMENT, options={}
    )
    assert row.error == "crash"
    assert row.problems == ("it does not compile: crash",)


def shown(*what):
    text = io.StringIO()
    Console(width=80, file=text).print(*what)
    return text.getvalue()


def test_tables():
    rows = [
        make_row(implementation="dense layer", facts=make_facts(3, 2_000_000, ())),
        make_row(),
        make_row(implementation="elementwise", facts=None, unsupported="too wide"),
        make_row(implementation="bcsr", facts=None, error="crash"),
        make_row(workload=dataclasses.replace(WORKLOAD, direction="forward+backward")),
    ]
    text = shown(*gpu_programs.tables(rows))
    assert "…" not in text
    assert text.count("monarch:16x16/8/float32/feature_last/forward") == 2
    cells = [line.split() for line in text.splitlines()]
    assert ["dense", "layer", "3", "6.0", "25%", "2.5", "7.5"] in cells
    assert (
        cells.count(["pallas", "1", "0.0", "0%", "2.5", "7.5", "40", "0", "128"]) == 2
    )
    assert ["elementwise:", "refused"] in cells
    assert ["bcsr:", "failed"] in cells
    text = shown(gpu_programs.instructions(rows))
    assert text.count("8 × mma.sync") == text.count("3 × shared load, 16 bytes") == 2
    kernel = dataclasses.replace(KERNEL, loop=LOOP, grid=ptx.Grid(120, 4, 256))
    rows = [make_row(), make_row(facts=make_facts(kernels=(kernel,)))]
    cells = [line.split() for line in shown(gpu_programs.loops(rows)).splitlines()]
    counts = ["120", "/", "4", "8.00", "4.00", "2", "1", "1", "4"]
    assert any(line[-9:] == counts for line in cells)


def test_rows_are_kept(tmp_path):
    rows = [
        make_row(),
        make_row(facts=None, error="crash", compiler_options={"a": "1"}),
    ]
    jsonl.append(tmp_path / "rows.jsonl", rows[:1])
    jsonl.append(tmp_path / "rows.jsonl", rows[1:])
    assert jsonl.load(tmp_path / "rows.jsonl", gpu_programs.Row) == rows
    assert rows[0].key != rows[1].key


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
@pytest.mark.parametrize("direction", workloads.DIRECTIONS)
@pytest.mark.parametrize("name", [workloads.DENSE_LAYER, "bmm"])
def test_shapes_are_those_of_a_call(layout, direction, name):
    chain = bj.Chain.monarch(16, 36)
    workload = workloads.Workload("16x36", chain, 5, "float16", layout, direction)
    drawn, shapes = workloads.draw(workload, seed=0), workloads.shapes(workload)
    function, arguments = workloads.program(workload, name, drawn)
    abstract_function, abstract = workloads.program(workload, name, shapes)

    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kinds(abstract) == kinds(arguments)
    outcome = jax.eval_shape(abstract_function, *abstract)
    assert kinds(outcome) == kinds(function(*arguments))


def test_chip_is_the_one_that_is_named():
    assert f'device_description_str: "{aot.DEVICE}"' in aot.CHIP.read_text()
