"""Ways to apply a chain, selectable by name; each is one file and one line here."""

from butterjax.implementations import bcsr as bcsr
from butterjax.implementations import bmm as bmm
from butterjax.implementations import dense as dense
from butterjax.implementations import einsum as einsum
from butterjax.implementations import elementwise as elementwise
from butterjax.implementations import pallas as pallas
from butterjax.implementations import pallas_chain as pallas_chain
from butterjax.implementations.registry import FeatureAxis as FeatureAxis
from butterjax.implementations.registry import (
    FusedImplementation as FusedImplementation,
)
from butterjax.implementations.registry import Implementation as Implementation
from butterjax.implementations.registry import get as get
from butterjax.implementations.registry import names as names
from butterjax.implementations.registry import register as register
from butterjax.implementations.registry import register_fused as register_fused
from butterjax.implementations.registry import with_epilogue as with_epilogue
