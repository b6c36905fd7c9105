import builtins

import numpy as np
import pytest

import butterjax as bj
from tests import reference


def test_plot_shows_each_support():
    chain = bj.Chain([(1, 3, 2, 2), (2, 2, 4, 1)])
    figure = bj.plot_supports(chain)
    assert len(figure.axes) == 2
    for ax, pattern in zip(figure.axes, chain, strict=True):
        image = ax.images[0].get_array()
        ones = reference.matrix(np.ones(pattern.shape))
        np.testing.assert_array_equal(image, ones.astype(bool))
        assert ax.get_title() == str(pattern)


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match="pip install 'butterjax"):
        bj.plot_supports(bj.Chain.square_dyadic(4))
