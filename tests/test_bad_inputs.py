"""What is wrong in a call is said: the argument, its value and the rule.

Each case is a call, the argument that is wrong, how its value must be shown, and a part
of the rule. The message must come from the library itself.
"""

import pathlib
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import butterjax as bj
from butterjax import array_checks

LIBRARY = pathlib.Path(bj.__file__).parent
CHAIN = bj.Chain.monarch(12, 20)
ONES = tuple(np.ones(shape, np.float32) for shape in CHAIN.shapes)
X = np.ones((2, 12), np.float32)
KEY = jax.random.key(0)

# Values that are no integers, and how messages show them.
NO_INTEGERS = [
    (2.5, r"2\.5"),
    (2.0, r"2\.0"),
    ("4", "'4'"),
    (None, "None"),
    (True, "True"),
    ([2], r"\[2\]"),
    (np.ones(3), r"an array of shape \(3,\) and dtype float64"),
]
# The same, of arguments that may be None.
NO_OPTIONAL_INTEGERS = [case for case in NO_INTEGERS if case[0] is not None]
INTEGER = "must be an integer"
POSITIVE = "must be at least 1"
CASES = []


def case(call, argument, shown, rule):
    CASES.append(pytest.param(call, argument, shown, rule))


def sizes(call, argument, values=None):
    """An argument that must be a positive integer."""
    for value, shown in NO_INTEGERS if values is None else values:
        case(lambda call=call, value=value: call(value), argument, shown, INTEGER)
    for value in (0, -3):
        case(lambda call=call, value=value: call(value), argument, value, POSITIVE)


def others(call, argument, rule, values):
    for value, shown in values:
        case(lambda call=call, value=value: call(value), argument, shown, rule)


# Patterns and chains
for letter in "abcd":
    good = {"a": 1, "b": 2, "c": 2, "d": 1}
    sizes(lambda v, letter=letter, good=good: bj.Pattern(**good | {letter: v}), letter)
sizes(CHAIN[0].bytes_per_row, "itemsize")
sizes(CHAIN.bytes_per_row, "itemsize")
others(
    CHAIN[0].why_not_chainable,
    "right",
    "must be a Pattern",
    [((1, 2, 2, 1), r"\(1, 2, 2, 1\)"), (None, "None")],
)
others(
    bj.Chain,
    "patterns",
    "must be a sequence of patterns",
    [(3, "3"), (None, "None"), ("1221", "'1221'"), ({(1, 2, 2, 1)}, r"\{\(1, 2")],
)
others(
    lambda pattern: bj.Chain([(1, 2, 2, 1), pattern]),
    r"patterns\[1\]",
    "must be four integers",
    [((1, 2), r"\(1, 2\)"), (7, "7"), ("1221", "'1221'"), (None, "None")],
)
others(
    lambda size: bj.Chain([(1, 2, size, 1)]),
    r"c of patterns\[0\]",
    INTEGER,
    NO_INTEGERS,
)
case(lambda: bj.Chain([(1, 0, 2, 1)]), r"b of patterns\[0\]", "0", POSITIVE)
case(lambda: bj.Chain([]), "patterns", "at least one", "must hold")
others(bj.Chain.square_dyadic, "n", INTEGER, NO_INTEGERS)
others(
    bj.Chain.square_dyadic,
    "n",
    "must be a power of two",
    [(0, "0"), (-4, "-4"), (12, "12")],
)
for make in (bj.Chain.monarch, bj.default_chain, bj.planning.candidates):
    sizes(lambda v, make=make: make(v, 16), "in_features")
    sizes(lambda v, make=make: make(16, v), "out_features")
    case(lambda make=make: make(2**31, 16), "in_features", "2147483648", "at most")
sizes(
    lambda v: bj.Chain.from_shape(64, 64, num_factors=v),
    "num_factors",
    NO_OPTIONAL_INTEGERS,
)
others(
    lambda v: bj.Chain.from_shape(64, 64, max_block=v),
    "max_block",
    INTEGER,
    NO_OPTIONAL_INTEGERS,
)
case(
    lambda: bj.Chain.from_shape(64, 64, max_block=1),
    "max_block",
    "1",
    "must be at least 2",
)
case(
    lambda: bj.Chain.from_shape(64, 64), "num_factors", "max_block=None", "give one of"
)
for call in (CHAIN.fuse, CHAIN.runs, lambda runs: bj.fuse(ONES, runs)):
    others(
        call,
        "partition",
        "must be",
        [
            (2, "2"),
            (None, "None"),
            ("11", "'11'"),
            ((3,), r"\(3,\)"),
            ((0, 2), r"\(0, 2\)"),
            ((), r"\(\)"),
        ],
    )
    others(lambda v, call=call: call((v, 1)), r"partition\[0\]", INTEGER, NO_INTEGERS)

# Factors: the same of every function that takes them
for call in (
    lambda factors: bj.butterfly(X, factors),
    bj.to_dense,
    lambda factors: bj.fuse(factors, (2,)),
    bj.transpose,
    bj.conjugate,
    bj.adjoint,
    bj.algebra.inverse,
    bj.algebra.slogdet,
    bj.algebra.trace,
    bj.algebra.frobenius_norm,
    lambda factors: bj.algebra.spectral_norm(factors, KEY),
):
    others(
        call,
        "factors",
        "must be a sequence of arrays, one for each factor",
        [
            (None, "None"),
            (3, "3"),
            ("no", "'no'"),
            (ONES[0], re.escape(f"one array of shape {ONES[0].shape}")),
            (jnp.ones((2, 2)), r"one array of shape \(2, 2\)"),
            (CHAIN, "Chain"),
            ({"factor_00": ONES[0]}, "a mapping with the keys factor_00"),
            ({1, 2}, r"\{1, 2\}"),
        ],
    )
    others(
        lambda first, call=call: call([first, ONES[1]]),
        r"factors\[0\]",
        "must be an array of numbers",
        [
            (None, "None"),
            ("w", "'w'"),
            ([1, [2]], r"\[1, \[2\]\]"),
            (list(ONES), r"\[array"),
            (KEY, r"an array of shape \(\) and dtype key"),
            ({"w": 1}, r"\{'w': 1\}"),
        ],
    )
    others(
        lambda first, call=call: call([first, ONES[1]]),
        r"factors\[0\]",
        r"must have the shape \(a, b, c, d\)",
        [
            (np.ones((2, 2)), r"\(2, 2\)"),
            (1.0, r"\(\)"),
            (np.ones((1, 0, 2, 1)), r"\(1, 0, 2, 1\)"),
        ],
    )
    case(lambda call=call: call([]), "factors", "none", "at least one")
    case(lambda call=call: call(ONES[::-1]), "factor 0", "features", "which comes bef")
INTEGERS = [factor.astype(int) for factor in ONES]
for call in (
    bj.to_dense,
    lambda factors: bj.fuse(factors, (2,)),
    bj.algebra.inverse,
    bj.algebra.trace,
):
    case(lambda call=call: call(INTEGERS), "factors", "int32", "dtype of .* must be")
for call in (
    lambda precision: bj.butterfly(X, ONES, precision=precision),
    lambda precision: bj.to_dense(ONES, precision=precision),
    lambda precision: bj.fuse(ONES, (1, 1), precision=precision),
    lambda precision: bj.algebra.frobenius_norm(ONES, precision=precision),
    lambda precision: bj.algebra.spectral_norm(ONES, KEY, precision=precision),
    lambda precision: bj.linen.Butterfly(8, precision=precision),
    lambda precision: bj.nnx.Butterfly(8, 8, precision=precision, rngs=nnx.Rngs(0)),
):
    others(
        call,
        "precision",
        "must be as in jax.lax.dot_general",
        [("best", "'best'"), (3, "3"), (["high"], r"\['high'\]")],
    )
for call, argument in (
    (lambda one: bj.algebra.product(one, ONES), "left"),
    (lambda one: bj.algebra.product(ONES, one), "right"),
    (lambda one: bj.algebra.kron(one, ONES), "left"),
    (lambda one: bj.algebra.kron(ONES, one), "right"),
    (lambda one: bj.algebra.block_diagonal(ONES, one), r"chains\[1\]"),
    (lambda one: bj.algebra.vstack(ONES, one), r"chains\[1\]"),
    (lambda one: bj.algebra.hstack(ONES, one), r"chains\[1\]"),
    (bj.algebra.cayley, "parameters"),
    (bj.algebra.matrix_exponential, "parameters"),
):
    others(
        call,
        argument,
        "must be a sequence of arrays",
        [(None, "None"), (3, "3"), (CHAIN, "Chain")],
    )
    case(lambda call=call: call([]), argument, "none", "at least one")
for call in (bj.algebra.block_diagonal, bj.algebra.vstack, bj.algebra.hstack):
    case(call, "chains", "none", "must be one or more")
case(
    lambda: bj.algebra.block_diagonal(ONES, ONES[:1]),
    "chains",
    "2, 1",
    "must have equally many factors",
)
case(
    lambda: bj.algebra.block_diagonal(ONES[:1], ONES[1:]),
    "chains",
    re.escape("(1, 5, 3, 4), (3, 4, 4, 1)"),
    "same b, c and d",
)
case(lambda: bj.algebra.vstack(ONES, ONES[:1]), "chains", "2, 1", "equally many")
case(lambda: bj.algebra.hstack(ONES, ONES[1:]), "chains", "20, 12", "equally many")
case(lambda: bj.algebra.product(ONES, ONES), "left", "12", "must take as many")
case(lambda: bj.algebra.trace(ONES), "factors", r"\(20, 12\)", "make a square matrix")
RECTANGLE = [np.ones((1, 2, 3, 1), np.float32)]
for call, argument in (
    (bj.algebra.inverse, r"factors\[0\]"),
    (bj.algebra.slogdet, r"factors\[0\]"),
    (bj.algebra.cayley, r"parameters\[0\]"),
    (bj.algebra.matrix_exponential, r"parameters\[0\]"),
):
    case(
        lambda call=call: call(RECTANGLE),
        argument,
        r"\(1, 2, 3, 1\)",
        "must have square blocks",
    )
sizes(lambda v: bj.algebra.spectral_norm(ONES, KEY, num_steps=v), "num_steps")
others(
    lambda key: bj.algebra.spectral_norm(ONES, key),
    "key",
    "must be a PRNG key",
    [(0, "0"), (None, "None")],
)
others(
    bj.Chain.of,
    "factors",
    "must be",
    [(None, "None"), (3, "3"), ({"a": 1}, r"\{'a': 1\}")],
)
others(
    lambda v: bj.Chain.of([v]),
    r"factors\[0\]",
    "must",
    [(None, "None"), ([1], r"\[1\]"), (np.ones(3), r"\(3,\)")],
)

# Links that are no factors
ORDER = bj.Permutation(np.arange(20))
for call in (
    lambda factors: bj.butterfly(X, factors),
    bj.to_dense,
    bj.transpose,
    bj.conjugate,
    bj.adjoint,
):
    case(lambda call=call: call(ORDER), "factors", "one Permutation", "must be a seq")
    case(
        lambda call=call: call((*ONES, ORDER)),
        r"factors\[1\]",
        r"takes 12 features.*factors\[2\], a Permutation of shape \(20, 20\)",
        "which comes before it, gives 20",
    )
    case(
        lambda call=call: call((ORDER, np.ones((2, 2)))),
        r"factors\[1\]",
        r"\(2, 2\)",
        r"must have the shape \(a, b, c, d\)",
    )
    others(
        lambda values, call=call: call([bj.Diagonal(values)]),
        r"values of factors\[0\]",
        "must",
        [
            (np.ones((2, 2)), r"\(2, 2\)"),
            (np.ones(0), r"\(0,\)"),
            ("no", "'no'"),
            (None, "None"),
        ],
    )
case(lambda: bj.fuse((*ONES, ORDER), (2, 1)), r"factors\[2\]", "Permutation", "array")
case(lambda: bj.butterfly(X, [ORDER]), "x", r"\(2, 12\)", "the last Permutation.* 20")
others(
    bj.Permutation,
    "indices",
    "must be integers",
    [([0.0], r"\[0\.0\]"), ("01", "'01'"), (None, "None"), ([True], r"\[True\]")],
)
others(
    bj.Permutation,
    "indices",
    r"must have the shape \(n,\)",
    [(3, "3"), (np.ones((2, 2), int), r"shape \(2, 2\)")],
)
others(
    bj.Permutation,
    "indices",
    "must hold each of 0",
    [([0, 0], r"\[0, 0\]"), ([1, 2], r"\[1, 2\]"), ([-1, 0], r"\[-1, 0\]")],
)
case(
    lambda: jax.jit(lambda i: bj.Permutation(i).apply(X, -1))(np.arange(12)),
    "indices",
    r"shape \(12,\)",
    "must be known",
)

# Transforms
FOURIER = (bj.transforms.dft, bj.transforms.idft, bj.transforms.hartley)
for make in (*FOURIER, bj.transforms.dct, bj.transforms.dst, bj.transforms.real_dft):
    sizes(make, "n")
    case(lambda make=make: make(2 * 1031), "n", "2062", "product of primes")
    others(
        lambda norm, make=make: make(8, norm=norm),
        "norm",
        "must be one of backward, ortho, forward",
        [(None, "None"), ("none", "'none'")],
    )
    others(lambda v, make=make: make(8, radix=v), "radix", INTEGER, NO_INTEGERS)
    case(lambda make=make: make(8, radix=1), "radix", "1", "must be at least 2")
    case(lambda make=make: make(8, dtype="i32"), "dtype", "'i32'", "must be one of")
for make in FOURIER[:2]:
    case(lambda make=make: make(8, dtype="f32"), "dtype", "float32", "must be complex")
for make in (bj.transforms.dct, bj.transforms.dst):
    case(lambda make=make: make(8, type=1), "type", "1", "must be one of 2, 3, 4")
case(lambda: bj.transforms.real_dft(9), "n", "9", "must be even")
for make in (
    bj.transforms.hadamard,
    bj.transforms.walsh,
    bj.transforms.haar,
    bj.transforms.bit_reversal,
):
    sizes(make, "n")
    case(lambda make=make: make(12), "n", "12", "must be a power of two")
case(lambda: bj.transforms.stride_permutation(12, 5), "stride", "5", "must divide n=12")
case(
    lambda: bj.transforms.permuted_axes((2, 3), (0, 2)),
    "axes",
    r"\(0, 2\)",
    "must hold",
)
case(lambda: bj.transforms.circulant(X), "column", r"\(2, 12\)", "must have the shape")
case(
    lambda: bj.transforms.circulant(np.ones(4, int)),
    "column",
    "int32",
    "must be one of",
)
case(
    lambda: bj.transforms.toeplitz(X[0], X[0, :3]), "row", r"\(3,\)", "must have the sh"
)

# Numbers modulo a prime
for call in (
    lambda p: bj.modular.ntt(4, p),
    lambda p: bj.modular.intt(4, p),
    lambda p: bj.modular.convolve([1], [1], p),
    lambda p: bj.modular.multiply_polynomials([1], [1], p),
    lambda p: bj.modular.butterfly([1], [np.ones((1, 1, 1, 1), int)], p),
):
    others(call, "modulus", INTEGER, NO_INTEGERS)
    others(
        call,
        "modulus",
        "must be an odd prime below",
        [(v, str(v)) for v in (-3, 0, 1, 2, 9, 2**31 + 11)],
    )
case(lambda: bj.modular.ntt(8, 13), "modulus", "13", "a multiple of 8")
case(
    lambda: bj.modular.ntt(4, 13, wrap="negacyclic"), "modulus", "13", "a multiple of 8"
)
case(lambda: bj.modular.ntt(4, 13, wrap="none"), "wrap", "'none'", "must be one of")
case(lambda: bj.modular.convolve([1.5], [1], 13), "f", "float32", "must be of integers")
case(lambda: bj.modular.convolve([1], [1, 2], 13), "f and g", r"\(2,\)", "must have")
case(
    lambda: bj.modular.multiply_polynomials([1], [], 13), "g", r"\(0,\)|float32", "must"
)
case(
    lambda: bj.modular.butterfly([1, 2], [np.ones((1, 1, 1, 1), int)], 13),
    "x",
    r"\(2,\)",
    "must have the 1 features",
)
case(
    lambda: bj.modular.butterfly([1], [np.ones((1, 1, 1, 1))], 13),
    "factors",
    "float32",
    "must be of integers",
)

# butterfly
others(
    lambda x: bj.butterfly(x, ONES),
    "x",
    "must be an array of numbers",
    [
        (None, "None"),
        ("x", "'x'"),
        ([[1], [1, 2]], r"\[\[1\], \[1, 2\]\]"),
        (KEY, "dtype key"),
        ({"x": 1}, r"\{'x': 1\}"),
        (object, "object"),
    ],
)
case(lambda: bj.butterfly(X.T, ONES), "x", r"\(12, 2\)", "takes a·c·d = 12")
others(
    lambda axis: bj.butterfly(X, ONES, axis=axis),
    "axis",
    INTEGER,
    NO_INTEGERS,
)
case(lambda: bj.butterfly(X, ONES, axis=2), "axis", "2", "out of range")
others(
    lambda bias: bj.butterfly(X, ONES, bias=bias),
    "bias",
    "must",
    [
        ("b", "'b'"),
        (3.0, r"\(\)"),
        (np.ones(3), r"\(3,\)"),
        (True, r"\(\)"),
        (KEY, "dtype key"),
        ([1, [2]], r"\[1, \[2\]\]"),
        (np.ones(20, int), "int32"),
    ],
)
ACTIVATIONS = [("tanh", "'tanh'"), (True, "True"), (["relu"], r"\['relu'\]"), (0, "0")]
others(
    lambda activation: bj.butterfly(X, ONES, activation=activation),
    "activation",
    "must be one of None, relu, gelu, silu",
    [*ACTIVATIONS, (jax.nn.relu, "relu")],
)
NAMES = [("eimsum", "'eimsum'"), (["bmm"], r"\['bmm'\]"), (3, "3"), (True, "True")]
for call in (
    lambda name: bj.butterfly(X, ONES, implementation=name),
    lambda name: bj.linen.Butterfly(8, implementation=name),
    lambda name: bj.nnx.Butterfly(8, 8, implementation=name, rngs=nnx.Rngs(0)),
):
    others(call, "implementation", "must be one of None, .*einsum", NAMES)
others(
    bj.implementations.get,
    "name",
    "must be one of .*einsum",
    [*NAMES, (None, "None")],
)
others(
    bj.implementations.register,
    "name",
    "must be a string",
    [(3, "3"), (None, "None"), (len, "len")],
)
case(
    lambda: bj.implementations.register("new")("einsum"),
    "function",
    "'einsum'",
    "must be a function",
)

# Dtypes, wherever one is given
WRONG_DTYPES = [
    ("int32", "int32"),
    ("brainfloat", "'brainfloat'"),
    (3, "3"),
    (["float32"], r"\['float32'\]"),
    ("a, b", "'a, b'"),
    (jnp.bool_, "bool"),
]
WIDE = [("float64", "float64"), (np.float64, "float64"), ("c128", "complex128")]
RECOMMEND = {"batch": 8, "dtype": "float32", "device": "cpu"}


def launch(**change):
    given = {
        "given_dtype": "bf16",
        "batch": 8,
        "axis": -1,
        "out_dtype": None,
        "given_precision": None,
        "patterns": CHAIN,
    } | change
    return array_checks.kernel_launch("plan_launches", given.pop("patterns"), **given)


def linen_output(**options):
    return bj.linen.Butterfly(8, **options).init_with_output(KEY, jnp.ones((2, 8)))


def nnx_layer(**options):
    options = {"in_features": 8, "out_features": 8, "rngs": nnx.Rngs(0)} | options
    return bj.nnx.Butterfly(**options)


for call, argument in [
    (
        lambda v: bj.butterfly(X, ONES, preferred_element_type=v),
        "preferred_element_type",
    ),
    (lambda v: nnx_layer(preferred_element_type=v), "preferred_element_type"),
    (lambda v: nnx_layer(dtype=v), "dtype"),
    (lambda v: bj.linen.Butterfly(8, dtype=v), "dtype"),
    (lambda v: nnx_layer(param_dtype=v), "param_dtype"),
    (lambda v: bj.linen.Butterfly(8, param_dtype=v), "param_dtype"),
    (lambda v: bj.init(KEY, CHAIN, v), "dtype"),
    (lambda v: bj.planning.recommend(8, 8, **RECOMMEND | {"dtype": v}), "dtype"),
    (lambda v: launch(given_dtype=v), "dtype"),
    (lambda v: launch(out_dtype=v), "out_dtype"),
]:
    others(call, argument, "must be", WRONG_DTYPES)
    others(call, argument, "must be .* or narrower.*jax_enable_x64", WIDE)

# init
others(
    lambda key: bj.init(key, CHAIN),
    "key",
    "must be a PRNG key",
    [
        (0, "0"),
        (None, "None"),
        ("key", "'key'"),
        (np.ones(2), r"an array of shape \(2,\)"),
        (jax.random.split(KEY), r"an array of shape \(2,\) and dtype key"),
    ],
)
NO_CHAINS = [
    ([(1, 2, 2, 1)], r"\[\(1, 2, 2, 1\)\]|\(\(1, 2, 2, 1\),\)"),
    ([], r"\[\]|\(\)"),
    ("monarch", "'monarch'"),
    (CHAIN[0], r"Pattern"),
    (3, "3"),
]
for call in (
    lambda chain: bj.init(KEY, chain),
    lambda chain: bj.linen.Butterfly(8, chain=chain),
    lambda chain: nnx_layer(chain=chain),
    lambda chain: bj.planning.choose(chain, batch=8, axis=-1),
    bj.planning.replaces_dense,
    bj.plot_supports,
):
    others(call, "chain", "must be a butterjax.Chain", NO_CHAINS)
others(lambda v: launch(patterns=v), "patterns", "must be a butterjax.Ch", NO_CHAINS)

# Initialisers
NO_FUNCTIONS = [("lecun", "'lecun'"), (0, "0"), (np.ones(2), "an array of shape")]
BAD_DRAWS = [
    (lambda *_: None, "None"),
    (lambda *_: jnp.ones(4), r"shape \(4,\)"),
    (lambda *_: 1.0, r"1\.0"),
    (lambda _, shape, *__: [jnp.ones(shape)] * 2, r"\["),
]
for call, argument in [
    (lambda v: bj.init(KEY, CHAIN, initializer=v), "initializer"),
    (lambda v: nnx_layer(kernel_init=v), "kernel_init"),
    (lambda v: nnx_layer(bias_init=v), "bias_init"),
    (lambda v: linen_output(kernel_init=v), "kernel_init"),
    (lambda v: linen_output(bias_init=v), "bias_init"),
]:
    others(call, argument, "must be a function", NO_FUNCTIONS)
    others(call, argument, "must return an array of the shape", BAD_DRAWS)

case(
    lambda: bj.initializers.identity()(KEY, (2, 3, 4)),
    "shape",
    r"\(2, 3, 4\)",
    "must be that of a matrix",
)

# Modules
sizes(bj.linen.Butterfly, "features")
sizes(lambda v: nnx_layer(in_features=v), "in_features")
sizes(lambda v: nnx_layer(out_features=v), "out_features")
for call in (
    lambda v: bj.linen.Butterfly(8, use_bias=v),
    lambda v: nnx_layer(use_bias=v),
):
    others(
        call,
        "use_bias",
        "must be True or False",
        [("no", "'no'"), (None, "None"), (0, "0"), (1.0, r"1\.0")],
    )
for call in (
    lambda v: bj.linen.Butterfly(8, promote_dtype=v),
    lambda v: nnx_layer(promote_dtype=v),
):
    others(call, "promote_dtype", "must be a function", [("f32", "'f32'"), (1, "1")])
others(
    lambda v: nnx_layer(rngs=v),
    "rngs",
    "must be an nnx.Rngs",
    [(0, "0"), (None, "None"), (KEY, "dtype key"), ({"params": 0}, r"\{'params': 0\}")],
)
for name in ("kernel_metadata", "bias_metadata"):
    others(
        lambda v, name=name: nnx_layer(**{name: v}),
        name,
        "must be a Mapping",
        [(None, "None"), (("a",), r"\('a',\)")],
    )
others(
    lambda v: nnx_layer(kernel_metadata={"out_sharding": v}),
    "kernel_metadata",
    "four names",
    [(3, "3"), (("in", "out"), r"\('in', 'out'\)"), ({"a": 1}, r"\{'a': 1\}")],
)
others(
    lambda v: linen_output(
        kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), v)
    ),
    "kernel_init",
    "four names",
    [(("in", "out"), r"\('in', 'out'\)"), ("in", r"\('in',\)")],
)
for call in (
    lambda v: bj.linen.Butterfly(8).init(KEY, v),
    lambda v: nnx_layer()(v),
):
    others(
        call,
        "inputs",
        "must",
        [
            (None, "None"),
            ("x", "'x'"),
            (3.0, r"\(\)"),
            ([[1], [1, 2]], r"\[\[1\], \[1, 2\]\]"),
            (KEY, "dtype key"),
        ],
    )
case(lambda: nnx_layer()(jnp.ones((2, 9))), "inputs", r"\(2, 9\)", "in_features=8")
case(
    lambda: bj.linen.Butterfly(20, chain=bj.Chain.square_dyadic(16)).init(KEY, X),
    "chain",
    "16 -> 16",
    "too few for a layer of 12 -> 20",
)
case(lambda: bj.linen.Butterfly(8).factors, "factors", "bind", "those of a module")

# factors_of
others(
    bj.factors_of,
    "params",
    "must be a dict or State",
    [(None, "None"), (ONES, r"\(array"), (nn.Dense(3), "Dense")],
)
others(
    bj.factors_of,
    "params",
    "must be those of one Butterfly layer",
    [
        ({}, "none"),
        ({"kernel": X, "bias": X}, "kernel, bias"),
        ({"params": {"factor_00": X}}, "params"),
    ],
)
others(
    bj.factors_of,
    "params",
    "must hold",
    [
        ({"factor_00": X, "factor_02": X}, "factor_00, factor_02"),
        ({"factor_1": X, "factor_01": X}, "factor_1, factor_01"),
    ],
)
case(
    lambda: bj.factors_of({"factor_00": "w"}),
    "factor 0 of params",
    "'w'",
    "must be an array of numbers",
)

# Planning
others(
    lambda batch: bj.planning.choose(CHAIN, batch=batch, axis=-1),
    "batch",
    INTEGER,
    NO_OPTIONAL_INTEGERS,
)
case(
    lambda: bj.planning.choose(CHAIN, batch=-1, axis=-1),
    "batch",
    "-1",
    "must be at least 0",
)
for call in (
    lambda axis: bj.planning.choose(CHAIN, batch=8, axis=axis),
    lambda axis: bj.planning.recommend(8, 8, **RECOMMEND, axis=axis),
    lambda axis: launch(axis=axis),
):
    others(call, "axis", INTEGER, NO_INTEGERS)
    others(call, "axis", "must be 0 or -1", [(7, "7"), (1, "1"), (-2, "-2")])
sizes(lambda v: launch(batch=v), "batch")
sizes(lambda v: bj.planning.recommend(v, 8, **RECOMMEND), "in_features")
sizes(lambda v: bj.planning.recommend(8, v, **RECOMMEND), "out_features")
sizes(lambda v: bj.planning.recommend(8, 8, **RECOMMEND | {"batch": v}), "batch")
for argument, rule, values in [
    ("device", "must be the name of a device", [(None, "None"), (3, "3")]),
    ("device", "no rates are known", [("Abacus", "'Abacus'")]),
    ("backward", "must be True or False", [("no", "'no'"), (None, "None")]),
    ("chains", "must be a sequence", [(3, "3"), ("monarch", "'monarch'")]),
    ("timings", "must be a sequence", [(3, "3"), (None, "None")]),
]:
    others(
        lambda v, argument=argument: bj.planning.recommend(
            8, 8, **RECOMMEND | {argument: v}
        ),
        argument,
        rule,
        values,
    )
others(
    lambda v: bj.planning.recommend(8, 8, **RECOMMEND, chains=[v]),
    r"chains\[0\]",
    "must",
    [(None, "None"), ([(1, 2, 2, 1)], r"\[\(1, 2, 2, 1\)\]"), (CHAIN, "12 -> 20")],
)
others(
    lambda v: bj.planning.recommend(8, 8, **RECOMMEND, timings=[v]),
    r"timings\[0\]",
    "must be a Timing",
    [(None, "None"), (3, "3")],
)
others(
    bj.planning.rates_of,
    "device",
    "must be the name of a device",
    [(None, "None"), (3, "3")],
)
case(lambda: bj.planning.calibrate(None, []), "rates", "None", "must be a Rates")
others(
    lambda v: bj.planning.calibrate(bj.planning.ASSUMED[0], v),
    "timings",
    "must be a",
    [(3, "3"), ([3], "3"), (None, "None")],
)


# Interchange
TWIDDLE = np.ones((1, 1, 2, 2, 2, 2), np.float32)
others(
    lambda path: bj.interchange.save(path, {"w": ONES}),
    "path",
    "must be a path",
    [(3, "3"), (None, "None")],
)
others(bj.interchange.load, "path", "must be a path", [(3, "3"), (None, "None")])
others(
    lambda chains: bj.interchange.save("nowhere/file", chains),
    "chains",
    "must",
    [(ONES, r"\(array"), (None, "None"), ({}, "none"), ({3: ONES}, "3")],
)
case(
    lambda: bj.interchange.save("nowhere/file", {"w": [np.ones((1, 2, 2, 1), "c16")]}),
    r"chains\['w'\]",
    "complex128",
    "must be one of float16.*complex64",
)
for call, argument in (
    (lambda v: bj.interchange.save("nowhere/file", {"w": v}), r"chains\['w'\]"),
    (bj.interchange.to_lazylinop, "factors"),
    (bj.interchange.from_lazylinop, "ks_values"),
    (bj.interchange.to_torch_butterfly, "factors"),
    (bj.interchange.to_monarch, "factors"),
):
    others(
        call,
        argument,
        "must be a sequence of arrays",
        [(None, "None"), (3, "3"), (CHAIN, "Chain"), ({"w": 1}, "mapping")],
    )
case(
    lambda: bj.interchange.to_lazylinop([np.ones((2, 2, 2, 1)), np.ones((1, 2, 2, 2))]),
    "factors",
    re.escape("(2, 2, 2, 1)(1, 2, 2, 2)"),
    "must be chainable",
)
for call in (bj.interchange.to_torch_butterfly, bj.interchange.to_monarch):
    case(
        lambda call=call: call(ONES[:1]),
        "factors",
        re.escape("Chain([(1, 5, 3, 4)])"),
        "must be",
    )
others(
    lambda v: bj.interchange.from_torch_butterfly(v, increasing_stride=True),
    "twiddle",
    "must",
    [("t", "'t'"), (TWIDDLE[0], r"\(1, 2, 2, 2, 2\)"), (None, "None")],
)
others(
    lambda v: bj.interchange.from_torch_butterfly(TWIDDLE, increasing_stride=v),
    "increasing_stride",
    "must be True or False",
    [(1, "1"), ("up", "'up'"), (None, "None")],
)
for argument in ("w1", "w2"):
    others(
        lambda v, argument=argument: bj.interchange.from_monarch(
            **{"w1": np.ones((2, 2, 2)), "w2": np.ones((2, 2, 2)), argument: v}
        ),
        argument,
        "must",
        [("w", "'w'"), (np.ones((2, 2)), r"\(2, 2\)"), (None, "None")],
    )
case(
    lambda: bj.interchange.from_monarch(np.ones((2, 2, 2)), np.ones((2, 2, 3))),
    "w2",
    r"\(2, 2, 3\)",
    "must take as many features",
)

# factorize and best_chain
W = np.ones((20, 12), np.float32)
NAN = np.full((20, 12), np.nan, np.float32)
others(lambda v: bj.factorize(W, v), "chain", "must be a butterjax.Chain", NO_CHAINS)
for call in (lambda v: bj.factorize(v, CHAIN), bj.best_chain):
    others(
        call,
        "matrix",
        "must",
        [
            (None, "None"),
            ("w", "'w'"),
            ([[1], [1, 2]], r"\[\[1\], \[1, 2\]\]"),
            (KEY, "dtype key"),
            (np.ones(12), r"\(12,\)"),
            (np.ones((20, 0)), r"\(20, 0\)"),
            (W.astype(int), "int32"),
            (NAN, "240 entries"),
        ],
    )
case(lambda: bj.factorize(W.T, CHAIN), "matrix", r"\(12, 20\)", r"ends in \(20, 12\)")
case(
    lambda: bj.factorize(W, bj.Chain([(2, 10, 3, 1), (1, 6, 12, 1)])),
    "chain",
    r"\(2, 10, 3, 1\)\(1, 6, 12, 1\)",
    "must be chainable",
)
others(
    lambda v: bj.factorize(W, CHAIN, refine_steps=v),
    "refine_steps",
    INTEGER,
    NO_INTEGERS,
)
case(
    lambda: bj.factorize(W, CHAIN, refine_steps=-1),
    "refine_steps",
    "-1",
    "must be at least 0",
)
ORDERS = [("right", "'right'"), (None, "None"), (0, "0"), (["balanced"], r"\['bal")]
for call in (
    lambda v: bj.factorize(W, CHAIN, order=v),
    lambda v: bj.best_chain(W, order=v),
):
    others(call, "order", "must be one of balanced, left_to_right", ORDERS)
sizes(lambda v: bj.best_chain(W, budget=v), "budget", NO_OPTIONAL_INTEGERS)
case(lambda: bj.best_chain(W, budget=9), "budget", "9", "at most 9 weights; the least")
case(lambda: bj.best_chain(np.ones((2, 3, 4))), "matrix", r"\(2, 3, 4\)", "two axes")
case(
    lambda: jax.jit(bj.best_chain)(W), "matrix", r"\(20, 12\)", "must be an array whose"
)


def test_there_are_enough():
    assert len(CASES) > 400


@pytest.mark.parametrize(("call", "argument", "shown", "rule"), CASES)
def test_bad_input(call, argument, shown, rule):
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
        call()
    message = str(caught.value)
    # The words, not a part of one: "n" is in nearly every message.
    assert re.search(rf"(?<!\w){argument}(?!\w)", message), message
    assert re.search(str(shown), message), message
    assert re.search(rule, message, flags=re.DOTALL), message
    where = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert pathlib.Path(where).is_relative_to(LIBRARY), f"raised by {where}"


def test_operands_that_are_no_chains():
    for left, right in [(CHAIN, 3), (CHAIN, None), (CHAIN[0], (1, 2, 2, 1))]:
        with pytest.raises(TypeError, match=r"unsupported operand type.* @: "):
            _ = left @ right


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("bf16", "bfloat16"),
        ("f16", "float16"),
        ("f32", "float32"),
        ("c64", "complex64"),
    ],
)
def test_short_names_of_dtypes_are_taken_everywhere(short, name):
    x = jnp.ones((2, 8))

    def outputs():
        layers = [
            nnx_layer(dtype=short, param_dtype=short),
            nnx_layer(param_dtype="bf16", preferred_element_type=short, use_bias=False),
        ]
        return [
            bj.butterfly(X, ONES, preferred_element_type=short),
            *bj.init(KEY, CHAIN, short),
            *bj.linen.Butterfly(8, dtype=short, param_dtype=short).init_with_output(
                KEY, x
            ),
            layers[0].factors,
            layers[0].bias[...],
            [layer(x) for layer in layers],
        ]

    leaves = jax.tree.leaves(jax.eval_shape(outputs))
    assert {leaf.dtype.name for leaf in leaves} == {name}
    if name != "complex64":
        recommend = bj.planning.recommend
        by_name = recommend(8, 8, **RECOMMEND | {"dtype": name})
        assert recommend(8, 8, **RECOMMEND | {"dtype": short}) == by_name
    assert launch(given_dtype=short, out_dtype=short) == (jnp.dtype(name),) * 2


@pytest.mark.parametrize("make", [tuple, list, iter, lambda f: (one for one in f)])
def test_any_sequence_of_factors(make):
    w = bj.to_dense(ONES)
    np.testing.assert_array_equal(bj.to_dense(make(ONES)), w)
    np.testing.assert_array_equal(bj.butterfly(X, make(ONES)), X @ w.T)
    np.testing.assert_array_equal(bj.to_dense(bj.transpose(make(ONES))), w.T)
    np.testing.assert_array_equal(bj.to_dense(bj.conjugate(make(ONES))), w)
    np.testing.assert_array_equal(bj.to_dense(bj.adjoint(make(ONES))), w.T)
    np.testing.assert_array_equal(bj.to_dense(bj.fuse(make(ONES), (2,))), w)
    assert bj.Chain.of(make(ONES)) == CHAIN


def test_python_float_is_as_wide_as_jax_has_it():
    assert bj.butterfly(X, ONES, preferred_element_type=float).dtype == "float32"
    with jax.enable_x64(True):
        y = bj.butterfly(X, ONES, preferred_element_type="f64")
        assert y.dtype == "float64"
