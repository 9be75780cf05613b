"""Charts of an X-ray as inline SVG: stacked bars of components, and the roofline with the components as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from tasks.reporting.charts import WIDTH, Scale, across, below, element, svg
from tasks.reporting.numbers import percent, plain, scaled

if TYPE_CHECKING:
    from tasks.ml.xray.cost_model import Roofline

ROW = 42
WIDE = 1056
"""Width of the page's column."""
LEAST_SHARE = 0.03
"""Of a wide bar, for a percentage below it."""
ROOF_WIDTH, ROOF_HEIGHT = 500, 330


@dataclass(frozen=True)
class Bar:
    """A quantity and its parts by key."""

    title: str
    parts: Mapping[str, float]
    unit: str
    """Of the parts, with a decimal prefix put before it."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def stacked(bars: Sequence[Bar], names: Mapping[str, str], *, label: str, shares: bool) -> Markup:
    """Bars of parts, one below the other, with their totals at the right.

    Args:
        names: parts in order, by key, which is also their class; as people read them.
        shares: whether every bar is as wide as the chart; else all have one scale.
    """
    largest = max(bar.total for bar in bars)
    marks = Markup("")
    for index, bar in enumerate(bars):
        marks += element("text", bar.title, x=0, y=index * ROW + 14, class_="label")
        value = scaled(bar.total, bar.unit)
        marks += element("text", value, x=WIDTH, y=index * ROW + 14, class_="value note end")
        marks += _parts(bar, names, y=index * ROW + 21, scale=WIDTH / (bar.total if shares else largest))
    return svg(len(bars) * ROW - 6, label, marks)


def shares(bars: Sequence[Bar], names: Mapping[str, str], *, label: str) -> Markup:
    """Bars over the whole page, all of one length, with the percentage of each larger part below it."""
    left, right, row = 150.0, WIDE - 90.0, 46
    marks = Markup("")
    for index, bar in enumerate(bars):
        y, scale, x = index * row, (right - left) / bar.total, left
        marks += element("text", bar.title, x=0, y=y + 15, class_="label")
        marks += element("text", scaled(bar.total, bar.unit), x=WIDE, y=y + 15, class_="value note end")
        marks += _parts(bar, names, y=y, scale=scale, left=left, height=20)
        for key in names:
            share = bar.parts.get(key, 0) / bar.total
            if share >= LEAST_SHARE:
                marks += element(
                    "text", percent(share, 0), x=x + share * (right - left) / 2, y=y + 33, class_="tick middle"
                )
            x += share * (right - left)
    return svg(len(bars) * row - 8, label, marks, width=WIDE)


def _parts(bar: Bar, names: Mapping[str, str], *, y: float, scale: float, left: float = 0, height: int = 14) -> Markup:
    """The parts of one bar, side by side; ``scale`` is pixels per unit."""
    marks, x = Markup(""), left
    for key, name in names.items():
        width = bar.parts.get(key, 0) * scale
        if width > 0.05:
            tip = f"{bar.title}, {name}: {scaled(bar.parts[key], bar.unit)}, {percent(bar.parts[key] / bar.total)}"
            mark = element("rect", x=x, y=y, width=width, height=height, class_=f"part {key}")
            marks += element("g", mark, data_tip=tip)
        x += width
    return marks


@dataclass(frozen=True)
class Dot:
    """A component in the roofline: FLOPs per byte in theory, FLOP/s as measured."""

    key: str
    name: str
    intensity: float
    flops_per_s: float


def roofline(
    dots: Sequence[Dot], roof: Roofline, *, cache_bytes_per_s: float, within: Sequence[Dot], label: str
) -> Markup:
    """The roofline of a machine (Williams et al. 2009), both axes logarithmic, and how far below it each component is.

    A filled dot is what was measured; the ring above it on the roof is the most that its intensity allows.

    Args:
        within: dots that the axes hold: those of all charts that are to be compared.
    """
    left, right, top, bottom = 46.0, ROOF_WIDTH - 8.0, 12.0, ROOF_HEIGHT - 44.0
    intensities = [dot.intensity for dot in within]
    x = Scale(min(*intensities, roof.ridge / 4) / 2, max(*intensities, roof.ridge) * 3, left, right, is_log=True)
    lowest = min(dot.flops_per_s for dot in within)
    y = Scale(min(lowest / 2, roof.flops_per_s / 40), roof.flops_per_s * 2, bottom, top, is_log=True)
    y_ticks = y.powers(1, 2, 5) if y.high / y.low < 400 else y.powers()
    marks = across(y, {tick: plain(tick / 1e9) for tick in y_ticks}, left, right)
    for tick in x.powers(base=4):
        marks += element("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, class_="grid")
    marks += below(x, {tick: plain(tick) for tick in x.powers(base=4)}, bottom + 17)
    marks += element("text", "FLOPs per byte moved", x=right, y=bottom + 36, class_="tick end")
    marks += element("text", "GFLOP/s", x=left + 4, y=top + 4, class_="tick start")
    for bandwidth, name, kind in ((cache_bytes_per_s, "cache", "roof cache"), (roof.bytes_per_s, "memory", "roof")):
        ridge = roof.flops_per_s / bandwidth
        first = max(x.low, y.low / bandwidth)
        points = [(first, first * bandwidth), (ridge, roof.flops_per_s)]
        points += [(x.high if kind == "roof" else roof.ridge, roof.flops_per_s)]
        if ridge > first:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
            tip = f"{name}: {scaled(bandwidth, 'B/s')}, peak {scaled(roof.flops_per_s, 'FLOP/s')}"
            marks += element("polyline", points=path, class_=kind, data_tip=tip)
    marks += element("text", scaled(roof.flops_per_s, "FLOP/s"), x=right, y=y(roof.flops_per_s) - 7, class_="tick end")
    return svg(ROOF_HEIGHT, label, marks, _dots(dots, roof, x, y), width=ROOF_WIDTH)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _apart(box: Box, others: Sequence[Box]) -> bool:
    return all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in others)


def _place(text: str, cx: float, cy: float, taken: Sequence[Box], top: float) -> Box:
    """The nearest box beside a dot, right or left of it and then lower or higher, that touches nothing."""
    width = 7.4 * len(text)
    boxes = [
        (left, cy + dy - 7, left + width, cy + dy + 7)
        for dy in (0, 15, -15, 30, -30, 45, 60, 75, 90)
        for left in (cx + 12, cx - 12 - width)
    ]
    inside = [box for box in boxes if box[2] < ROOF_WIDTH and box[1] > top]
    return next((box for box in inside if _apart(box, taken)), boxes[0])


def _dots(dots: Sequence[Dot], roof: Roofline, x: Scale, y: Scale) -> Markup:
    """Rings, dots, and names beside them."""
    marks, roof_y = Markup(""), y(roof.flops_per_s)
    taken: list[Box] = []
    for dot in dots:
        cx, cy = x(dot.intensity), y(dot.flops_per_s)
        taken.append((cx - 7, cy - 7, cx + 7, cy + 7))
        ring = y(roof.attainable(dot.intensity))
        taken.append((cx - 5, ring - 5, cx + 5, ring + 5))
    for dot in sorted(dots, key=lambda dot: -dot.flops_per_s):
        cx, cy, most = x(dot.intensity), y(dot.flops_per_s), roof.attainable(dot.intensity)
        box = _place(dot.name, cx, cy, taken, roof_y + 3)
        taken.append(box)
        tip = (
            f"{dot.name}: {scaled(dot.flops_per_s, 'FLOP/s')} of {scaled(most, 'FLOP/s')} that "
            f"{plain(round(dot.intensity, 1))} FLOPs per byte allow, {percent(dot.flops_per_s / most, 0)}"
        )
        drawn = element("line", x1=cx, x2=cx, y1=y(most), y2=cy, class_="gap")
        drawn += element("circle", cx=cx, cy=y(most), r=4, class_=f"ring {dot.key}")
        to_right = box[0] > cx
        if box[1] != cy - 7:
            edge = box[0] - 2 if to_right else box[2] + 2
            drawn += element("line", x1=cx, x2=edge, y1=cy, y2=box[1] + 7, class_="gap")
        drawn += element("circle", cx=cx, cy=cy, r=6, class_=f"part {dot.key}")
        text_x, side = (box[0], "start") if to_right else (box[2], "end")
        drawn += element("text", dot.name, x=text_x, y=box[1] + 11, class_=side)
        marks += element("g", drawn, data_tip=tip)
    return marks
