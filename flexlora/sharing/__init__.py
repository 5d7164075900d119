"""Sharing plans of E²LoRA (ICLR 2026): which layers share an adapter, and with which rank.

gradients.py: statistics of the gradients of the frozen weights, from a few batches.
similarity.py: entropies, and how similar the gradients of two layers are.
partition.py: intervals of neighbouring layers that share one adapter (layer-wise sharing, LSS).
ranks.py: the rank of each interval (hierarchical rank allocation, HRA).
plan.py: the plan of a whole model, as a saved configuration holds it.
"""

# First: importing PEFT registers our tuners, and those of E²LoRA import the files of this package.
import peft  # noqa: F401

from .gradients import GradientStatistics, gradient_statistics
from .options import SharingOptions
from .plan import Interval, SharingPlan, TypePlan, plan_of, sharing_plan, unshared_plan

__all__ = [
    "GradientStatistics",
    "Interval",
    "SharingOptions",
    "SharingPlan",
    "TypePlan",
    "gradient_statistics",
    "plan_of",
    "sharing_plan",
    "unshared_plan",
]
