"""Which implementation to use for a chain, a batch and a dtype."""

from butterjax.planning.rule import choose as choose
