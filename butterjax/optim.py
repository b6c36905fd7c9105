"""Which parameters an optimiser treats how: masks for `optax`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from butterjax.parameters import is_factor_name

_BOX = GetAttrKey("value")  # Flax's, around a parameter with metadata.


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay is for: kernels, and factors, which replace them.

    Masks written for `nn.Dense`, such as `path[-1] == "kernel"`, find no factor. Give
    this to `optax.adamw(..., mask=butterjax.optim.decay_mask)`, or to
    `optax.masked`.

    Args:
      params: parameters of a Flax model, linen's or an NNX state, or any pytree that
        has tuples of factors in it.

    Returns:
      The same tree with True for each leaf that is named `kernel` or `factor_00`,
      `factor_01`, …, and for arrays of four axes in a tuple or a list, which are
      factors that have no name; with False for all else: biases, scales, embeddings.
    """
    return jax.tree.map_with_path(_decays, params)


def _decays(path: tuple[Any, ...], leaf: Any) -> bool:
    *_, last = [0, *(_name(key) for key in path if key != _BOX)]
    if isinstance(last, str):
        return last == "kernel" or is_factor_name(last)
    return jnp.ndim(leaf) == 4


def _name(key: Any) -> Any:
    """A name or a position in a tree."""
    match key:
        case DictKey(key=name) | GetAttrKey(name=name) | SequenceKey(idx=name):
            return name
    return None
