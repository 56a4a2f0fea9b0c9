"""Targets, kernels, measurements and cost models. Knows kernels; knows neither networks nor policies."""

from __future__ import annotations

import os

# No telemetry: onnxruntime's wheels report their use, unless told not to before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from hw_profiles.errors import HwProfilesError, UnknownTargetError
from hw_profiles.kernel import COLUMNS, KernelBatch, KernelKind, concat, make_batch
from hw_profiles.predictor import Prediction, Predictor
from hw_profiles.target import Target, list_targets, load_target

__all__ = [
    "COLUMNS",
    "HwProfilesError",
    "KernelBatch",
    "KernelKind",
    "Prediction",
    "Predictor",
    "Target",
    "UnknownTargetError",
    "concat",
    "list_targets",
    "load_target",
    "make_batch",
]
