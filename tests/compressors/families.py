"""The twelve hand-written networks; take them from `tests.compressors.networks`."""

# A module called by torch returns Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def norm_relu(channels: int) -> list[nn.Module]:
    """Batch-norm and ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def conv(
    cin: int, cout: int, k: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), batch-norm, ReLU."""
    pad = dilation * (k - 1) // 2
    return nn.Sequential(nn.Conv2d(cin, cout, k, stride, pad, dilation, groups, bias=False), *norm_relu(cout))


class Plain(nn.Module):
    """Convolutions with batch-norm, pooling, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2), conv(32, 32))
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 16, 16) to (b, 10)."""
        return self.head(F.relu(self.hidden(torch.flatten(self.body(x), 1))))


class ResidualUnit(nn.Module):
    """Two convolutions and a shortcut, projected where the shape changes (He et al. 2016)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(cin, cout, 3, stride)
        self.conv2 = nn.Sequential(nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout))
        self.project: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.project = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """relu(f(x) + shortcut(x))."""
        return F.relu(self.conv2(self.conv1(x)) + self.project(x))


class Residual(nn.Module):
    """A stem, four residual units, two of them with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.units = nn.Sequential(
            ResidualUnit(16, 16, 1), ResidualUnit(16, 32, 2), ResidualUnit(32, 32, 1), ResidualUnit(32, 32, 1)
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        return self.head(self.units(self.stem(x)).mean((2, 3)))


class InceptionUnit(nn.Module):
    """Four parallel branches, concatenated (Szegedy et al. 2015)."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.one = conv(cin, 16, 1)
        self.three = nn.Sequential(conv(cin, 16, 1), conv(16, 24, 3))
        self.five = nn.Sequential(conv(cin, 8, 1), conv(8, 16, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(cin, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """cin to 64 channels."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Inception(nn.Module):
    """A stem and two inception units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.units = nn.Sequential(InceptionUnit(16), InceptionUnit(64))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        return self.head(F.adaptive_avg_pool2d(self.units(self.stem(x)), 1).flatten(1))


class FireUnit(nn.Module):
    """Squeeze, then two expansions side by side (Iandola et al. 2016); biases, no batch-norm."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """cin to 2 * expand channels."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class Fire(nn.Module):
    """A stem, three fire modules and a convolution that classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.units = nn.Sequential(FireUnit(16, 8, 16), FireUnit(32, 16, 24), FireUnit(48, 16, 32))
        self.head = nn.Conv2d(64, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        x = self.units(F.max_pool2d(F.relu(self.stem(x)), 2))
        return self.head(x).mean((2, 3))


class DepthwiseSeparable(nn.Module):
    """MobileNetV1: depthwise 3x3 and pointwise 1x1 in turn, ReLU6 (Howard et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()

        def pair(cin: int, cout: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False), nn.BatchNorm2d(cin), nn.ReLU6(),
                nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU6(),
            )  # fmt: skip

        self.body = nn.Sequential(conv(3, 16), pair(16, 32, 2), pair(32, 32, 1), pair(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        return self.head(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class SqueezeExcite(nn.Module):
    """Channel gate from pooled features (Hu et al. 2018), hard sigmoid."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x times a gate of shape (b, channels, 1, 1)."""
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(gate))))


class InvertedUnit(nn.Module):
    """Expand, depthwise, squeeze-excite, project, shortcut (Howard et al. 2019)."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid), nn.Hardswish()
        )
        self.gate = SqueezeExcite(mid, 8)
        self.project = nn.Sequential(nn.Conv2d(mid, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.same = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """cin to cout channels."""
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.same else y


class InvertedResidual(nn.Module):
    """MobileNetV3: inverted residual units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.units = nn.Sequential(
            InvertedUnit(16, 48, 16, 1), InvertedUnit(16, 48, 24, 2), InvertedUnit(24, 64, 24, 1)
        )
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        return self.head(F.adaptive_avg_pool2d(self.units(self.stem(x)), 1).flatten(1))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise, grouped 1x1 (Zhang et al. 2018)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = conv(channels, channels, 1, groups=groups)
        self.depthwise = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)
        )
        self.last = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        y = self.first(x)
        b, c, h, w = y.shape
        y = y.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return F.relu(x + self.last(self.depthwise(y)))


class Grouped(nn.Module):
    """Grouped convolutions, 1x1 with channel shuffle and 3x3 without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, 3, 2)
        self.units = nn.Sequential(ShuffleUnit(32, 4), ShuffleUnit(32, 4))
        self.wide = conv(32, 64, 3, 2, groups=4)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        return self.head(self.wide(self.units(self.stem(x))).mean((2, 3)))


class Decoder(nn.Module):
    """A small U-Net: strided encoder, transposed decoder, skips by concat, one class map a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv(1, 16)
        self.down2 = conv(16, 32, 3, 2)
        self.down3 = conv(32, 48, 3, 2)
        self.up2 = nn.Sequential(nn.ConvTranspose2d(48, 32, 2, 2, bias=False), *norm_relu(32))
        self.mix2 = conv(64, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.mix1 = conv(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 16, 16) to (b, 4, 16, 16)."""
        a = self.down1(x)
        b = self.down2(a)
        c = self.down3(b)
        b = self.mix2(torch.cat([self.up2(c), b], 1))
        a = self.mix1(torch.cat([F.relu(self.up1(b)), a], 1))
        return self.head(a)


class Dilated(nn.Module):
    """Dilated convolutions at several rates, added and upsampled (Chen et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24, 3, 2)
        self.rates = nn.ModuleList(conv(24, 24, 3, dilation=d) for d in (1, 2, 3))
        self.mix = nn.Conv2d(24, 32, 1)
        self.head = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 8, 16, 16)."""
        x = self.stem(x)
        total = self.rates[0](x)
        for rate in list(self.rates)[1:]:
            total = total + rate(x)
        x = F.relu(self.mix(total))
        return F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=False)


class SharedWeights(nn.Module):
    """One convolution with its batch-norm applied three times, and one linear layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24, 3, 2)
        self.repeat = conv(24, 24)
        self.widen = nn.Linear(24, 32)
        self.square = nn.Linear(32, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 16, 16) to (b, 10)."""
        x = self.stem(x)
        for _ in range(3):
            x = self.repeat(x)
        x = F.relu(self.widen(x.mean((2, 3))))
        return self.head(F.relu(self.square(F.relu(self.square(x)))))


class Conv1dNet(nn.Module):
    """Signals: Conv1d, batch-norm, max- and average pooling."""

    def __init__(self) -> None:
        super().__init__()

        def layer(cin: int, cout: int, k: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv1d(cin, cout, k, stride, k // 2, bias=False), nn.BatchNorm1d(cout), nn.ReLU()
            )

        self.body = nn.Sequential(
            layer(6, 16, 7, 2), nn.MaxPool1d(2), layer(16, 32, 5, 1), layer(32, 48, 3, 2)
        )
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 6, 64) to (b, 10)."""
        return self.head(self.body(x).mean(2))


class Attention(nn.Module):
    """Self-attention from one fused projection: reshape, permute, unbind, scaled dot product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to the same."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(b, n, c))


class AttentionUnit(nn.Module):
    """Pre-norm attention and a two-layer perceptron with GELU, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Patches, one hand-written unit, one `nn.TransformerEncoderLayer`, mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, 32))
        self.unit = AttentionUnit(32, 4)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 16, 16) to (b, 10)."""
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(self.unit(x)).mean(1))
