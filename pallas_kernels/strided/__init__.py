"""One factor with d > 1, features last, in one launch: weights stay in registers."""

from pallas_kernels.strided import cost as cost
from pallas_kernels.strided.api import strided as strided
from pallas_kernels.strided.config import default_config as default_config
from pallas_kernels.strided.plan import Config as Config
