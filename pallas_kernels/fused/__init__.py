"""Two factors in one launch, intermediates on chip, their weights in registers."""

from pallas_kernels.fused import cost as cost
from pallas_kernels.fused.api import fused as fused
from pallas_kernels.fused.config import Config as Config
from pallas_kernels.fused.config import default_config as default_config
