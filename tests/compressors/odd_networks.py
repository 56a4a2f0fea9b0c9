"""Networks with one unusual trait each; take them from `tests.compressors.networks`."""

# A module called by torch returns Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compressors.families import CLASSES, conv


class Halves(nn.Module):
    """Channels split in two and in three, put together in another order (ShuffleNetV2, C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24)
        self.left, self.last = conv(12, 12), conv(24, 24)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        a, b = self.stem(x).chunk(2, 1)
        x = self.last(torch.cat([b, self.left(a)], 1))
        p, q, r = x.split([8, 8, 8], 1)
        return self.head(torch.cat([p + q, r], 1).mean((2, 3)))


class InPlace(nn.Module):
    """In-place activations and additions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 8, 8, 8)."""
        x = self.act(self.conv1(x))
        y = self.conv2(x)
        y += x
        y.relu_()
        return F.hardtanh_(self.head(y), -2.0, 2.0)


class Functional(nn.Module):
    """Parameters used by functions: F.linear, matrix product with `@`, F.conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.2)
        self.first = nn.Parameter(torch.randn(24, 16) * 0.2)
        self.second = nn.Parameter(torch.randn(24, 24) * 0.2)
        self.third = nn.Parameter(torch.randn(CLASSES, 24) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        x = F.relu(F.conv2d(x, self.kernel, stride=2)).mean((2, 3))
        x = F.relu(F.linear(x, self.first))
        return F.relu(x @ self.second) @ self.third.t()


class GroupNormed(nn.Module):
    """Group norm between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(2, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        x = F.silu(self.norm1(self.conv1(x)))
        return self.head(F.silu(self.norm2(self.conv2(x))).mean((2, 3)))


class ChannelsLast(nn.Module):
    """ConvNeXt: depthwise 7x7, layer norm and perceptron over channels last, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma = nn.Parameter(torch.full((16,), 0.5))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)
        return self.head((x + y).mean([-2, -1]))


class PReLUNet(nn.Module):
    """PReLU with one slope a channel and with one for all; leaky ReLU, ELU, softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 16, 3), nn.PReLU(16)
        self.conv2, self.act2 = nn.Conv2d(16, 16, 3), nn.PReLU()
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        x = F.leaky_relu(self.conv3(self.act2(self.conv2(self.act1(self.conv1(x))))), 0.1)
        return self.head(F.softplus(F.elu(x.mean((2, 3)))))


class PreActivation(nn.Module):
    """Batch-norm before the convolution and behind an addition: it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        x = self.stem(x)
        y = self.conv1(F.relu(self.norm1(x)))
        x = x + self.conv2(F.relu(self.norm2(y)))
        return self.head(F.relu(self.norm3(x)).mean((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv(3, 16), nn.Linear(6, 16)
        self.join, self.head = nn.Linear(32, 24), nn.Linear(24, CLASSES)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        """(b, 3, 8, 8) and (b, 6) to (b, 10)."""
        both = torch.cat([self.image(image).mean((2, 3)), F.relu(self.vector(vector))], 1)
        return self.head(F.relu(self.join(both)))


class TwoOutputs(nn.Module):
    """A class and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16), conv(16, 24, 3, 2))
        self.label, self.box = nn.Linear(24, CLASSES), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 8, 8) to (b, 10) and (b, 4)."""
        x = self.body(x).mean((2, 3))
        return self.label(x), self.box(x)


class TiedEmbedding(nn.Module):
    """Token ids; the embedding is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 40, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(b, 12) integers to (b, 12, 40)."""
        x = self.embed(ids)
        return self.out(self.norm(x + self.fc2(F.relu(self.fc1(x)))))


class FixedBatch(nn.Module):
    """A reshape that names the batch size: traced for this batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 16), conv(16, 16, 3, 2)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(2, 3, 8, 8) to (2, 10)."""
        return self.head(self.conv2(self.conv1(x)).reshape(2, 256))


class Gated(nn.Module):
    """Gated linear units: F.glu over channels, and a SwiGLU perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 32, 3, padding=1)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 4, 20) to (b, 10)."""
        x = F.glu(self.conv(x), 1).mean(2)
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class GroupedTransposed(nn.Module):
    """Transposed convolutions with groups: depthwise and in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.depthwise = nn.ConvTranspose2d(16, 16, 2, 2, groups=16)
        self.halves = nn.ConvTranspose2d(16, 24, 3, 1, 1, groups=2)
        self.head = nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 8, 16, 16)."""
        return self.head(F.relu(self.halves(F.relu(self.depthwise(self.stem(x))))))


class Reparametrised(nn.Module):
    """Weights computed from other parameters: weight norm, and a weight times a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 10)."""
        x = F.relu(self.conv1(x))
        x = F.relu(F.conv2d(x, self.conv2.weight * 0.5, self.conv2.bias, padding=1))
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """Zeros around the data in operations of their own, as networks from TensorFlow have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.ReLU6())
        self.even = nn.Conv2d(12, 8, (4, 1), padding="same")
        self.last = nn.Conv2d(8, 8, 2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = F.pad(x, (1, 1, 1, 1))  # read by two
        x = self.depthwise(wide) + F.max_pool2d(wide, 3, 1)
        x = F.relu(self.last(F.pad(self.even(x), (2, 1))))
        return self.head(x.mean((2, 3)))
