"""Chains in files, and in the layouts that other libraries keep their weights in.

Files are of safetensors (`pip install 'butterjax[interchange]'`). Layouts are NumPy
arrays on both sides: `from_…` gives factors of shapes (a, b, c, d), in the order of the
matrix product W = K₁K₂…K_L, with the dtype they had, and `to_…` takes them; a PyTorch
tensor is given as `tensor.detach().numpy()`. Numbers are moved, and never rounded.

The functions raise TypeError where an argument is no array of numbers, no sequence of
them or no mapping, and ValueError where shapes are not those of the layout.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from butterjax import array_checks, checks
from butterjax.files import write_whole
from butterjax.numerics import SUPPORTED_DTYPES
from butterjax.parameters import factor_names
from butterjax.pattern import Chain, Pattern

Arrays = tuple[NDArray[Any], ...]
_KEY = "butterjax"  # Of the patterns, in a file's metadata.
_STORED = tuple(name for name in SUPPORTED_DTYPES if name != "complex128")


class Twiddle(NamedTuple):
    """What a `torch_butterfly.Butterfly` of one stack keeps.

    Attributes:
      twiddle: (1, nblocks, log₂n, n/2, 2, 2).
      increasing_stride: whether the first block is applied with strides 1, 2, …, n/2,
        rather than n/2, …, 2, 1; the blocks after it alternate.
    """

    twiddle: NDArray[Any]
    increasing_stride: bool


class Monarch(NamedTuple):
    """The two block-diagonal weights of a Monarch layer.

    Attributes:
      w1: (k, q, p), k blocks, the first to touch x.
      w2: (l, s, r), l blocks, with l·r = k·q.
    """

    w1: NDArray[Any]
    w2: NDArray[Any]


def save(
    path: str | os.PathLike[str], chains: Mapping[str, Iterable[ArrayLike]]
) -> None:
    """Writes chains to a safetensors file, with their patterns in its metadata.

    The factors of the chain "name" are the tensors name.factor_00, name.factor_01, …,
    so any program that reads safetensors reads them. The file is written whole or not
    at all, and replaces one that is there.

    Args:
      path: the file, in a folder that exists.
      chains: the factors of each chain by its name.

    Raises:
      ImportError: if safetensors is not installed.
      TypeError: if `path` is no path, `chains` no mapping, or a name no string.
      ValueError: if there is no chain, or factors do not follow one another.
      NotImplementedError: if a dtype is one that files cannot hold, as complex128.
      OSError: if the file cannot be written.
    """
    file = _path("save", path)
    checks.instance("save", "chains", chains, Mapping, "a dict of factors by name")
    if not chains:
        raise ValueError("save: chains must hold at least one chain, got none")
    tensors, patterns = {}, {}
    for name, factors in chains.items():
        checks.instance("save", "a name in chains", name, str, "a string")
        arrays = _factors("save", f"chains[{name!r}]", factors)
        patterns[name] = Chain.of(arrays).shapes
        for key, array in zip(_keys(name, len(arrays)), arrays, strict=True):
            if array.dtype.name not in _STORED:
                raise NotImplementedError(
                    f"save: the dtype of chains[{name!r}] must be one of "
                    f"{', '.join(_STORED)}, which safetensors files hold; got "
                    f"{array.dtype.name}"
                )
            tensors[key] = np.ascontiguousarray(array)
    module = _safetensors("save")
    metadata = {_KEY: json.dumps(patterns)}
    write_whole(file, lambda part: module.save_file(tensors, part, metadata))


def load(path: str | os.PathLike[str]) -> dict[str, Arrays]:
    """Reads the chains of a file that `save` wrote.

    Args:
      path: the file.

    Returns:
      The factors of each chain by its name, NumPy arrays of the dtypes they had.

    Raises:
      ImportError: if safetensors is not installed.
      TypeError: if `path` is no path.
      ValueError: if the file is no safetensors file, has no patterns in its metadata,
        or its tensors are not of these patterns.
      OSError: if it cannot be read.
    """
    file = _path("load", path)
    _safetensors("load")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            patterns = _patterns(file, opened.metadata())
            present = set(opened.keys())
            chains = {}
            for name, chain in patterns.items():
                keys = _keys(name, len(chain))
                if missing := [key for key in keys if key not in present]:
                    raise ValueError(
                        f"load: path={str(file)!r} must hold the tensors of its "
                        f"patterns; it has no {', '.join(missing)}"
                    )
                chains[name] = tuple(opened.get_tensor(key) for key in keys)
    except SafetensorError as error:
        raise ValueError(
            f"load: path={str(file)!r} must be a safetensors file: {error}"
        ) from error
    for name, chain in patterns.items():
        shapes = tuple(array.shape for array in chains[name])
        if shapes != chain.shapes:
            raise ValueError(
                f"load: path={str(file)!r} must hold tensors of the patterns of "
                f"{name!r}, {chain.shapes}; they have the shapes {shapes}"
            )
    return chains


def to_lazylinop(factors: Iterable[ArrayLike]) -> list[NDArray[Any]]:
    """What `lazylinop.butterfly.ksm` takes as `ks_values`, for the matrix W.

    Raises:
      ValueError: if neighbours are not chainable, which lazylinop asks for.
    """
    arrays = _factors("to_lazylinop", "factors", factors)
    if reason := Chain.of(arrays).why_not_chainable():
        raise ValueError(f"to_lazylinop: factors must be chainable, got {reason}")
    return [np.ascontiguousarray(array) for array in arrays]


def from_lazylinop(ks_values: ArrayLike | Iterable[ArrayLike]) -> Arrays:
    """Factors of `ksm(ks_values)`: of one array (a, b, c, d), or of a list of them."""
    given = [ks_values] if hasattr(ks_values, "shape") else ks_values
    return _factors("from_lazylinop", "ks_values", given)


def to_torch_butterfly(factors: Iterable[ArrayLike]) -> Twiddle:
    """The weights of the `Butterfly` of torch_butterfly or torch-structured for W.

    Args:
      factors: one or more radix-2 chains of size n, one after the other: the factor
        that touches x first has stride d = 1, and strides go up to n/2, or it has
        d = n/2 and they go down to 1; the chain that follows goes the other way.

    Raises:
      ValueError: if the factors have other patterns.
    """
    arrays = _factors("to_torch_butterfly", "factors", factors)
    chain = Chain.of(arrays)
    n = chain.in_features
    log_n = n.bit_length() - 1
    increasing = chain[-1].d == 1
    wanted = None
    if n > 1 and n == 1 << log_n and len(chain) % log_n == 0:
        strides = _strides(log_n, len(chain) // log_n, increasing)
        wanted = [Pattern(n // (2 * d), 2, 2, d) for d in reversed(strides)]
    if wanted != list(chain):
        raise ValueError(
            "to_torch_butterfly: factors must be radix-2 chains that go up and down in "
            f"turn, as Chain.square_dyadic has them, got {chain!r}"
        )
    blocks = [
        array.transpose(0, 3, 1, 2).reshape(n // 2, 2, 2) for array in reversed(arrays)
    ]
    return Twiddle(np.stack(blocks).reshape(1, -1, log_n, n // 2, 2, 2), increasing)


def from_torch_butterfly(twiddle: ArrayLike, *, increasing_stride: bool) -> Arrays:
    """Factors of the `Butterfly` of torch_butterfly or torch-structured.

    Block by block and within a block stride by stride, the weights (n/2, 2, 2) of
    stride d are those of a factor (n/2d, 2, 2, d), with the pair (i, k) of block and
    offset as one axis in front. That layer pads x with zeros to n features and keeps
    the first of the out-features; these factors do neither.

    Args:
      twiddle: (1, nblocks, log₂n, n/2, 2, 2). Of a layer with more stacks give
        twiddle[i : i + 1] for each; its matrix is that of their chains above one
        another (`butterjax.algebra.vstack`). Complex weights that are kept as pairs of
        numbers are to be viewed as complex.
      increasing_stride: as the layer has it.
    """
    function = "from_torch_butterfly"
    array = _array(function, "twiddle", twiddle)
    increasing = checks.boolean(function, "increasing_stride", increasing_stride)
    log_n = array.shape[2] if array.ndim == 6 else 0
    n = 1 << log_n
    if log_n < 1 or array.shape != (1, array.shape[1], log_n, n // 2, 2, 2):
        raise ValueError(
            f"{function}: twiddle must have the shape (1, nblocks, log2(n), n/2, 2, "
            f"2), got {array.shape}"
        )
    strides = _strides(log_n, array.shape[1], increasing)
    weights = array.reshape(len(strides), n // 2, 2, 2)
    factors = [
        one.reshape(n // (2 * d), d, 2, 2).transpose(0, 2, 3, 1)
        for one, d in zip(weights, strides, strict=True)
    ]
    return _factors(function, "twiddle", reversed(factors))


def to_monarch(factors: Iterable[ArrayLike]) -> Monarch:
    """The two weights of a Monarch layer for W: of fly, and of torch-structured.

    Args:
      factors: two factors (1, s, r, l)(k, q, p, 1), as `Chain.monarch` has them.

    Raises:
      ValueError: if the factors have other patterns.
    """
    arrays = _factors("to_monarch", "factors", factors)
    chain = Chain.of(arrays)
    if len(chain) != 2 or chain[0].a != 1 or chain[1].d != 1:
        raise ValueError(
            "to_monarch: factors must be two of patterns (1, s, r, l)(k, q, p, 1), got "
            f"{chain!r}"
        )
    left, right = arrays
    return Monarch(right[..., 0], left[0].transpose(2, 0, 1))


def from_monarch(w1: ArrayLike, w2: ArrayLike) -> Arrays:
    """Factors of a Monarch layer, y[s, l] = Σ_r w2[l, s, r] · z[r, l].

    z is Σ_p w1[k, q, p] · x[k, p], its k·q features numbered anew as r·l.

    Args:
      w1: (k, q, p): `blkdiag1` of fly's `MonarchLinear`, `w1` of torch-structured's.
      w2: (l, s, r) with l·r = k·q: `blkdiag2` and `w2`.

    Returns:
      Two factors of patterns (1, s, r, l)(k, q, p, 1).
    """
    arrays = [_array("from_monarch", n, w) for n, w in (("w1", w1), ("w2", w2))]
    for name, array in zip(("w1", "w2"), arrays, strict=True):
        if array.ndim != 3 or not array.size:
            raise ValueError(
                f"from_monarch: {name} must have three axes, blocks of a "
                f"block-diagonal matrix, got shape {array.shape}"
            )
    first, second = arrays
    inner, taken = first.shape[0] * first.shape[1], second.shape[0] * second.shape[2]
    if inner != taken:
        raise ValueError(
            f"from_monarch: w2 must take as many features as w1 gives, {inner}; it "
            f"takes {taken}, with shape {second.shape}"
        )
    return second.transpose(1, 2, 0)[None], first[..., None]


def _strides(log_n: int, num_blocks: int, increasing: bool) -> list[int]:
    """The strides in the order they are applied in."""
    up = [1 << i for i in range(log_n)]
    turns = [up if increasing == (i % 2 == 0) else up[::-1] for i in range(num_blocks)]
    return [stride for turn in turns for stride in turn]


def _array(function: str, name: str, value: Any) -> NDArray[Any]:
    """An array of numbers as it is: JAX might make its 64 bits 32."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fciu":
        return np.asarray(array_checks.array(function, name, value))
    return value


def _factors(function: str, name: str, factors: Any) -> Arrays:
    """The factors as NumPy arrays that follow one another."""
    given = list(factors) if isinstance(factors, Iterator) else factors
    array_checks.factors(function, given, name)  # Raises what is to be raised.
    arrays = tuple(_array(function, name, one) for one in given)
    Chain.of(arrays)
    return arrays


def _keys(name: str, length: int) -> list[str]:
    return [f"{name}.{factor}" for factor in factor_names(length)]


def _path(function: str, value: Any) -> pathlib.Path:
    try:
        return pathlib.Path(value)
    except TypeError:
        raise TypeError(
            f"{function}: path must be a path, got {checks.shown(value)}"
        ) from None


def _patterns(file: pathlib.Path, metadata: dict[str, str] | None) -> dict[str, Chain]:
    rule = f"load: path={str(file)!r} must have patterns under {_KEY!r} in its metadata"
    try:
        written = json.loads((metadata or {})[_KEY])
        return {name: Chain(patterns) for name, patterns in written.items()}
    except KeyError:
        raise ValueError(f"{rule}, got {metadata}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{rule}: {error}") from error


def _safetensors(function: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{function} needs safetensors: pip install 'butterjax[interchange]'"
        ) from error
    return safetensors.numpy
