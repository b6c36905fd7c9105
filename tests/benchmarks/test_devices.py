import types

import jax
import pytest

from benchmarks import devices


@pytest.mark.parametrize(
    ("platform", "capability", "words"),
    [
        ("gpu", "9.0", None),
        ("gpu", "10.0", None),
        ("gpu", "8.0", "of compute capability 9.0; a card has 8.0"),
        ("cpu", None, "needs an NVIDIA GPU, from Hopper on; JAX's device is"),
        ("gpu", None, "needs an NVIDIA GPU, from Hopper on; JAX's device is"),
    ],
)
def test_problem(monkeypatch, platform, capability, words):
    device = types.SimpleNamespace(
        platform=platform, compute_capability=capability, device_kind="a card"
    )
    monkeypatch.setattr(jax, "devices", lambda: [device])
    if words is None:
        assert devices.problem() is None
    else:
        assert words in devices.problem()
