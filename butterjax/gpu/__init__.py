"""Launches of the GPU kernels, and their gradients; imported when first used."""

from butterjax.gpu.gradients import BackwardPlan as BackwardPlan
from butterjax.gpu.gradients import plan_backward as plan_backward
from butterjax.gpu.plan import Launch as Launch
from butterjax.gpu.plan import plan_launches as plan_launches
