"""A picture of a chain's supports; needs matplotlib."""

from typing import TYPE_CHECKING

from butterjax import array_checks
from butterjax.pattern import Chain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_supports(chain: Chain) -> "Figure":
    """Draws the support of each factor, in the order of the matrix product.

    Args:
      chain: the chain; a factor is drawn as a matrix of out_features × in_features.

    Returns:
      A matplotlib figure, to be shown by a notebook or saved with `savefig`.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if `chain` is no chain.
    """
    array_checks.chain("plot_supports", "chain", chain)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot_supports needs matplotlib: pip install 'butterjax[benchmarks]'"
        ) from error
    figure = Figure(figsize=(2.2 * len(chain), 2.6), layout="constrained")
    axes = figure.subplots(1, len(chain), squeeze=False)[0]
    for ax, pattern in zip(axes, chain, strict=True):
        ax.imshow(pattern.support(), cmap="binary", vmin=0, vmax=1, aspect="equal")
        ax.set(title=str(pattern), xticks=[], yticks=[])
        ax.set_xlabel(f"{pattern.out_features} × {pattern.in_features}")
    return figure
