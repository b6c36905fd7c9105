"""The weight gradient of one factor with d > 1, features last, in one launch."""

from pallas_kernels.weight_gradient import cost as cost
from pallas_kernels.weight_gradient.api import weight_gradient as weight_gradient
from pallas_kernels.weight_gradient.config import default_config as default_config
from pallas_kernels.weight_gradient.plan import Config as Config
