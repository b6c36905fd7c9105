import pytest

import butterjax as bj
from benchmarks import cases


@pytest.mark.parametrize(
    ("spec", "chain"),
    [
        ("square_dyadic:8", bj.Chain.square_dyadic(8)),
        ("square_dyadic:64/2", bj.Chain.monarch(64, 64)),
        ("square_dyadic:16/3", bj.Chain([(1, 4, 4, 4), (4, 2, 2, 2), (8, 2, 2, 1)])),
        ("monarch:24x60", bj.Chain.monarch(24, 60)),
        ("(1,4,4,4)(4,4,4,1)", bj.Chain.monarch(16, 16)),
        ("(1, 4, 4, 4) (4, 4, 4, 1)", bj.Chain.monarch(16, 16)),
    ],
)
def test_parse(spec, chain):
    assert cases.parse_chain(spec) == chain


@pytest.mark.parametrize("name", cases.PAPER_CHAINS)
def test_chains_of_the_paper(name):
    sizes = {
        "vit_s16_qkvo": (384, 384),
        "vit_s16_up": (384, 1536),
        "vit_s16_down": (1536, 384),
        "gpt2_medium_down": (4096, 1024),
    }
    chain = cases.parse_chain(name)
    assert (chain.in_features, chain.out_features) == sizes[name]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("butterfly", "'butterfly' is no chain; write square_dyadic:N"),
        ("(1,2,3)", "is no chain"),
        ("monarch:7x9", "in_features=7"),
        ("square_dyadic:16/5", "4 factors, which cannot be multiplied out into 5"),
        ("(1,2,2,4)(1,2,2,4)(2,2,2,1)", "takes a·c·d = 8"),
    ],
)
def test_parse_errors(spec, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        cases.can_parse(["square_dyadic:8", spec])
