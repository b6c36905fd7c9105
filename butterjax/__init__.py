"""Deep structured linear layers for JAX: products of butterfly factors."""

import importlib
from types import ModuleType

from butterjax import algebra as algebra
from butterjax import implementations as implementations
from butterjax import initializers as initializers
from butterjax import interchange as interchange
from butterjax import linen as linen
from butterjax import modular as modular
from butterjax import nnx as nnx
from butterjax import optim as optim
from butterjax import planning as planning
from butterjax import transforms as transforms
from butterjax.apply import butterfly as butterfly
from butterjax.dense_like import default_chain as default_chain
from butterjax.factorization import ChainFit as ChainFit
from butterjax.factorization import Factorization as Factorization
from butterjax.factorization import best_chain as best_chain
from butterjax.factorization import factorize as factorize
from butterjax.factors import adjoint as adjoint
from butterjax.factors import conjugate as conjugate
from butterjax.factors import fuse as fuse
from butterjax.factors import to_dense as to_dense
from butterjax.factors import transpose as transpose
from butterjax.initializers import init as init
from butterjax.links import Diagonal as Diagonal
from butterjax.links import Permutation as Permutation
from butterjax.parameters import factors_of as factors_of
from butterjax.pattern import Chain as Chain
from butterjax.pattern import Pattern as Pattern
from butterjax.plotting import plot_supports as plot_supports

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name == "gpu":  # A second to import, and of no use to most CPU users.
        return importlib.import_module("butterjax.gpu")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
