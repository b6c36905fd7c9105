"""The gradients of one factor, of x and of the weights, in one launch."""

from pallas_kernels.gradients import cost as cost
from pallas_kernels.gradients.api import default_config as default_config
from pallas_kernels.gradients.api import gradients as gradients
from pallas_kernels.gradients.plan import Config as Config
