"""`einsum`: one contraction per factor; XLA picks the layouts."""

from butterjax.factors import apply_factor
from butterjax.implementations.registry import one_by_one, register

einsum = register("einsum")(one_by_one(apply_factor))
