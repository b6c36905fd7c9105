"""Small factors, one or a whole chain, in one launch on CUDA cores, in float32."""

from pallas_kernels.radix import cost as cost
from pallas_kernels.radix.api import radix as radix
from pallas_kernels.radix.config import Config as Config
from pallas_kernels.radix.search import default_config as default_config
