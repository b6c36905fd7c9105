"""One factor in one launch: blocks of any size, x and y in either layout."""

from pallas_kernels.factor import cost as cost
from pallas_kernels.factor.api import default_config as default_config
from pallas_kernels.factor.api import factor as factor
from pallas_kernels.factor.config import Config as Config
