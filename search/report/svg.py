"""A small kit for drawing SVG whose colours come from the page: light, dark and on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], about so many: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= about + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float) -> str:
    """As many decimals as the step between ticks needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:.{decimals}f}"


def tag(name: str, content: str = "", title: str = "", **attributes: object) -> str:
    """One element; `class_` stands for class, `_` for `-`. `title` becomes its tooltip."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(v))}"'
        for key, v in attributes.items()
        if v is not None
    )
    inner = (f"<title>{escape(title)}</title>" if title else "") + content
    return f"<{name}{shown}>{inner}</{name}>" if inner else f"<{name}{shown}/>"


def _value(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else str(value)


def text(
    x: float, y: float, words: str, anchor: str = "start", class_: str = "tick", transform: str | None = None
) -> str:
    """Words at a place; anchored at their start, middle or end."""
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_, transform=transform)


@dataclass
class Axes:
    """A drawing with two linear axes.

    Attributes:
        width, height: of the whole drawing in pixels.
        x_range, y_range: what the axes show, in data units.
        margin: left, top, right, bottom in pixels.
    """

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    margin: tuple[float, float, float, float] = (62, 14, 18, 46)
    parts: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.margin[0]

    @property
    def right(self) -> float:
        return self.width - self.margin[2]

    @property
    def top(self) -> float:
        return self.margin[1]

    @property
    def bottom(self) -> float:
        return self.height - self.margin[3]

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def inside(self, x: float, y: float) -> bool:
        """Whether a point lies in the frame."""
        return self.x_range[0] <= x <= self.x_range[1] and self.y_range[0] <= y <= self.y_range[1]

    def add(self, *parts: str) -> None:
        self.parts += parts

    def axes(self, x_label: str, y_label: str, y_suffix: str = "") -> None:
        """Grid, ticks and the axes' names."""
        xs, ys = ticks(*self.x_range, about=7), ticks(*self.y_range, about=5)
        for v in ys:
            y = self.y(v)
            self.add(tag("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid"))
            self.add(text(self.left - 8, y + 4, tick_label(v, _step(ys)) + y_suffix, "end", "tick"))
        for v in xs:
            self.add(text(self.x(v), self.bottom + 18, tick_label(v, _step(xs)), "middle", "tick"))
            self.add(
                tag("line", x1=self.x(v), x2=self.x(v), y1=self.bottom, y2=self.bottom + 4, class_="axis")
            )
        self.add(tag("line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"))
        self.add(text((self.left + self.right) / 2, self.bottom + 38, x_label, "middle", "label"))
        middle = (self.top + self.bottom) / 2
        turned = f"rotate(-90 14 {number(middle)})"
        self.add(text(14, middle, y_label, "middle", "label", transform=turned))

    def svg(self, label: str) -> str:
        """The finished drawing; `label` is read out to those who cannot see it."""
        return drawing(self.width, self.height, self.parts, label)


def _step(values: Sequence[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else 1.0


def drawing(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """An SVG element around `parts`."""
    return tag(
        "svg",
        "\n".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=label,
    )


def padded(values: Sequence[float], share: float = 0.06, least: float = 0.0) -> tuple[float, float]:
    """A range around the values with a margin on both sides, at least `least` wide."""
    low, high = min(values), max(values)
    pad = max((high - low) * share, (least - (high - low)) / 2, abs(high) * 1e-6, 1e-9)
    return low - pad, high + pad
