"""Named transforms as chains: exact but for rounding, and trainable from there.

Each function returns a tuple of links, which `butterjax.butterfly` applies and
`butterjax.to_dense` multiplies out: factors, and a `Permutation` or a `Diagonal` where
the mathematics needs one. Weights are computed in float64, then rounded to the dtype
asked for. `butterjax.algebra.kron` makes transforms of two axes.
"""

from butterjax.transforms.convolutions import circulant as circulant
from butterjax.transforms.convolutions import toeplitz as toeplitz
from butterjax.transforms.fourier import dct as dct
from butterjax.transforms.fourier import dft as dft
from butterjax.transforms.fourier import dst as dst
from butterjax.transforms.fourier import hartley as hartley
from butterjax.transforms.fourier import idft as idft
from butterjax.transforms.fourier import real_dft as real_dft
from butterjax.transforms.permutations import bit_reversal as bit_reversal
from butterjax.transforms.permutations import permuted_axes as permuted_axes
from butterjax.transforms.permutations import stride_permutation as stride_permutation
from butterjax.transforms.wavelets import haar as haar
from butterjax.transforms.wavelets import hadamard as hadamard
from butterjax.transforms.wavelets import walsh as walsh
