"""Which implementation to use for a chain, and which chain for a layer."""

from butterjax.planning.rates import ASSUMED as ASSUMED
from butterjax.planning.rates import Rates as Rates
from butterjax.planning.rates import rates_of as rates_of
from butterjax.planning.recommendation import DENSE_LAYER as DENSE_LAYER
from butterjax.planning.recommendation import Option as Option
from butterjax.planning.recommendation import Recommendation as Recommendation
from butterjax.planning.recommendation import Timing as Timing
from butterjax.planning.recommendation import calibrate as calibrate
from butterjax.planning.recommendation import candidates as candidates
from butterjax.planning.recommendation import recommend as recommend
from butterjax.planning.recommendation import replaces_dense as replaces_dense
from butterjax.planning.rule import choose as choose
