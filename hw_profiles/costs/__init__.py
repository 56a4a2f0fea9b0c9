"""Cost models: kernels in, microseconds out. One module per kind of device."""

from __future__ import annotations

from hw_profiles.costs.base import CLASSES, CostModel, Costs, cost_model

__all__ = ["CLASSES", "CostModel", "Costs", "cost_model"]
