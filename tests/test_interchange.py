"""Files, and other libraries' layouts against the formulas that they publish."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax import interchange
from tests import reference

RADIX_2 = bj.Chain.square_dyadic(8)


def same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64"]
)
def test_files_hold_chains_as_they_were(tmp_path, dtype):
    path = tmp_path / "chains.safetensors"
    chains = {
        "up": reference.draw_factors(bj.Chain.monarch(12, 20), dtype),
        "layers.0.down": reference.draw_factors(RADIX_2, dtype, seed=5),
    }
    interchange.save(path, chains)
    loaded = interchange.load(str(path))
    assert list(loaded) == list(chains)
    for name, factors in chains.items():
        same(loaded[name], factors)


def test_files_are_of_safetensors(tmp_path):
    import safetensors.numpy

    path = tmp_path / "chain.safetensors"
    factors = bj.init(jax.random.key(0), RADIX_2)
    # A view that is not contiguous, and JAX arrays.
    interchange.save(path, {"w": bj.transpose(factors), "v": [np.ones((2, 3, 4, 1)).T]})
    tensors = safetensors.numpy.load_file(path)
    names = [f"w.factor_0{i}" for i in range(3)]
    assert sorted(tensors) == ["v.factor_00", *names]
    same([tensors[name] for name in names], [*map(np.asarray, bj.transpose(factors))])
    with safetensors.safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["butterjax"])
    expected = [list(shape) for shape in RADIX_2.transpose.shapes]
    assert metadata == {"w": expected, "v": [[1, 4, 3, 2]]}


def test_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    import safetensors.numpy

    path = tmp_path / "chain.safetensors"
    interchange.save(path, {"w": [np.ones((1, 2, 2, 1))]})

    def fail(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        interchange.save(path, {"w": [np.zeros((1, 2, 2, 1))]})
    same(interchange.load(path)["w"], [np.ones((1, 2, 2, 1))])
    assert [one.name for one in tmp_path.iterdir()] == ["chain.safetensors"]


def test_files_that_are_not_chains(tmp_path):
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match=r"path=.*must be a safetensors file"):
        interchange.load(path)
    with pytest.raises(FileNotFoundError):
        interchange.load(tmp_path / "missing")
    tensors = {"w.factor_00": np.ones((1, 2, 2, 1))}
    for metadata, rule in [
        (None, "must have patterns under 'butterjax'"),
        ({"butterjax": "[["}, "must have patterns under 'butterjax'"),
        ({"butterjax": "[1]"}, "must have patterns under 'butterjax'"),
        ({"butterjax": '{"w": [[1, 2, 2]]}'}, "must be four integers"),
        ({"butterjax": '{"w": [[1, 2, 3, 1]]}'}, r"tensors of the patterns of 'w'"),
        ({"butterjax": '{"v": [[1, 2, 2, 1]]}'}, r"it has no v\.factor_00"),
    ]:
        safetensors.numpy.save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=rule):
            interchange.load(path)


@pytest.mark.parametrize(
    "chain", [bj.Chain.monarch(12, 20), RADIX_2, bj.Chain([(2, 3, 4, 5)])], ids=str
)
def test_lazylinop(chain):
    """M[i·b·d + j·d + l, i·c·d + k·d + l] = ks_values[i, j, k, l]."""
    ks_values = interchange.to_lazylinop(reference.draw_factors(chain, "float64"))
    product = np.eye(chain.out_features)
    for values in ks_values:
        assert values.flags.c_contiguous
        a, b, c, d = values.shape
        matrix = np.zeros((a * b * d, a * c * d))
        for i, j, k, l in np.ndindex(values.shape):
            matrix[i * b * d + j * d + l, i * c * d + k * d + l] = values[i, j, k, l]
        product = product @ matrix
    factors = interchange.from_lazylinop(ks_values)
    assert reference.relative_error(reference.dense(factors), product) < 1e-14
    same(interchange.from_lazylinop(ks_values[0]), ks_values[:1])


def twiddle_multiply(twiddle, x, increasing_stride):
    """Per stride s: pairs of features s apart, in blocks of 2·s, one weight each."""
    _, nblocks, log_n, half, _, _ = twiddle.shape
    for block in range(nblocks):
        for index in range(log_n):
            up = increasing_stride == (block % 2 == 0)
            stride = 2 ** (index if up else log_n - 1 - index)
            y = np.empty_like(x)
            for pair in range(half):
                first = pair // stride * 2 * stride + pair % stride
                places = [first, first + stride]
                y[places] = twiddle[0, block, index, pair] @ x[places]
            x = y
    return x


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize(("log_n", "nblocks"), [(1, 1), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_butterfly(log_n, nblocks, increasing, dtype):
    n = 2**log_n
    twiddle = reference.draw((1, nblocks, log_n, n // 2, 2, 2), dtype)
    factors = interchange.from_torch_butterfly(twiddle, increasing_stride=increasing)
    expected = twiddle_multiply(twiddle, np.eye(n, dtype=dtype), increasing)
    assert reference.relative_error(reference.dense(factors), expected) < 1e-14
    back = interchange.to_torch_butterfly(factors)
    same([back.twiddle], [twiddle])
    assert back.increasing_stride == (increasing or n == 2)


def test_radix_2_chain_has_increasing_strides():
    factors = reference.draw_factors(RADIX_2)
    twiddle, increasing = interchange.to_torch_butterfly(factors)
    assert increasing
    same(
        interchange.from_torch_butterfly(twiddle, increasing_stride=increasing), factors
    )


@pytest.mark.parametrize(
    ("k", "q", "p", "l", "s", "r"), [(3, 4, 2, 6, 5, 2), (4, 3, 3, 2, 2, 6)]
)
def test_monarch(k, q, p, l, s, r):
    """out1[k, q] is numbered anew as [r, l], then out[s, l] = Σ w2[l, s, r] out1."""
    w1, w2 = reference.draw((k, q, p), "float64"), reference.draw((l, s, r), "float64")
    expected = np.zeros((s * l, k * p))
    for column in range(k * p):
        out1, out = np.zeros(k * q), np.zeros((s, l))
        block, offset = divmod(column, p)
        for j in range(q):
            out1[block * q + j] = w1[block, j, offset]
        for i, o, m in np.ndindex(l, s, r):
            out[o, i] += w2[i, o, m] * out1[m * l + i]
        expected[:, column] = out.reshape(-1)
    factors = interchange.from_monarch(w1, w2)
    assert bj.Chain.of(factors) == bj.Chain([(1, s, r, l), (k, q, p, 1)])
    assert reference.relative_error(reference.dense(factors), expected) < 1e-14
    same(interchange.to_monarch(factors), (w1, w2))


def test_layouts_take_jax_arrays_and_keep_dtypes():
    factors = [jnp.ones(shape, "bfloat16") for shape in bj.Chain.monarch(4, 6).shapes]
    w1, w2 = interchange.to_monarch(factors)
    assert w1.dtype == w2.dtype == "bfloat16"
    same(interchange.from_monarch(w1, w2), [*map(np.asarray, factors)])
