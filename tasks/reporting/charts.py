"""Charts as inline SVG: a few shapes with class names; the page's stylesheet gives them colour, light or dark.

Lengths are in SVG user units: CSS pixels at the width of ``WIDTH``. Marks that carry ``data-tip`` answer the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from tasks.reporting.numbers import aligned, between, change, number, percent, plain, points, times
from tasks.reporting.numbers import unit as measure

WIDTH = 340
ROW = 48
MAX_POINTS = 160

Format = Callable[[float], str]
Points = Sequence[tuple[float, float]]
Ends = tuple[float, float]
"""The two ends of an interval."""


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Returns one escaped element; ``class_`` is ``class``, other underscores are dashes, floats have two decimals."""
    shown = ""
    for name, value in attributes.items():
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(value)
        shown += f' {name.rstrip("_").replace("_", "-")}="{text}"'
    return Markup(f"<{tag}{shown}>{''.join(map(escape, children))}</{tag}>")


def svg(height: float, label: str, *children: Any, width: float = WIDTH) -> Markup:
    """Wraps marks into an image that scales with its column; ``label`` is what a screen reader says."""
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


@dataclass(frozen=True)
class Scale:
    """A linear map of values onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Returns up to about ``count`` round values (steps of 1, 2 or 5 times a power of ten) inside the scale."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spread(values: Sequence[float], start: float, end: float, *, padding: float = 0.08) -> Scale:
    """A scale that holds all values with some air; a single value gets a span around it."""
    low, high = min(values), max(values)
    margin = (high - low) * padding or abs(high) * padding or 1.0
    return Scale(low - margin, high + margin, start, end)


def wilson(fraction: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927)."""
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _row_text(y: float, label: str, value: str, note: str = "") -> Markup:
    number_ = element("text", element("tspan", note, class_="note"), f" {value}", x=WIDTH, y=y, class_="value end")
    return element("text", label, x=0, y=y, class_="label") + number_


def _final(name: str, index: int, rows: Sized) -> str:
    """Class names of a mark; the last row is the one to look at."""
    return f"{name} final" if index == len(rows) - 1 else name


def waterfall(rows: Sequence[tuple[str, float | None, Ends | None]], *, label: str, unit: str) -> Markup:
    """Bars from zero, one per stage; the pale part of a bar is what the stage took away, the line its interval.

    Args:
        rows: stage title, value in ``unit`` and the ends of its interval, in order; ``None`` where nothing was
            measured, and where the measurement is exact.
        label: the quantity.
    """
    reached = [one for _, value, ends in rows if value is not None for one in (value, *(ends or ()))]
    scale = Scale(0, max(reached) or 1, 0, WIDTH)
    marks = Markup("")
    before: float | None = None
    for index, (title, value, ends) in enumerate(rows):
        y = index * ROW
        if value is None:
            marks += _row_text(y + 15, title, "", "not timed")
            continue
        step = change(value, before) if before else ""
        bar = element("rect", x=0, y=y + 23, width=scale(value), height=14, class_=_final("bar", index, rows))
        if before is not None and before > value:
            width = scale(before) - scale(value)
            bar += element("rect", x=scale(value), y=y + 23, width=width, height=14, class_="gone")
        if ends:
            bar += element("line", x1=scale(ends[0]), x2=scale(ends[1]), y1=y + 30, y2=y + 30, class_="error")
        tip = f"{title}: {measure(value, unit)}" + (f", {step} against the stage before" if step else "")
        tip += f", 95 % interval {number(ends[0])} to {measure(ends[1], unit)}" if ends else ""
        marks += _row_text(y + 15, title, measure(value, unit), step) + element("g", bar, data_tip=tip)
        before = value
    return svg(len(rows) * ROW, f"{label} after each stage", marks)


def quality(rows: Sequence[tuple[str, float, Ends | None, str]], *, label: str, floor: float | None) -> Markup:
    """Accuracy of each stage as a dot with its 95 % interval, against the teacher and the lowest value allowed.

    Args:
        rows: stage title, accuracy, the ends of its interval and what these are, in order; the first is the teacher.
        floor: the teacher's accuracy less what the budget allows to lose.
    """
    bounds = [end for _, accuracy, ends, _ in rows for end in (accuracy, *(ends or ()))]
    scale = spread(bounds + ([] if floor is None else [floor]), 0, WIDTH, padding=0.04)
    marks = Markup("")
    for index, (title, accuracy, ends, about) in enumerate(rows):
        top, y = index * ROW + 20, index * ROW + 30
        strip = element("rect", x=0, y=top, width=WIDTH, height=20, class_="hit")
        strip += element("line", x1=scale(rows[0][1]), x2=scale(rows[0][1]), y1=top, y2=top + 20, class_="reference")
        if floor is not None:
            strip += element("line", x1=scale(floor), x2=scale(floor), y1=top, y2=top + 20, class_="limit")
        if ends:
            low, high = map(scale, ends)
            strip += element("line", x1=low, x2=high, y1=y, y2=y, class_=_final("whisker", index, rows))
        strip += element("circle", cx=scale(accuracy), cy=y, r=5.5, class_=_final("dot", index, rows))
        tip = f"{title}: {percent(accuracy, 2)}" + (f", {about}" if about else "")
        step = points(accuracy - rows[index - 1][1], signed=True) if index else ""
        marks += _row_text(index * ROW + 15, title, percent(accuracy), step) + element("g", strip, data_tip=tip)
    bottom = len(rows) * ROW
    for tick in scale.ticks():
        text = f"{plain(100 * tick)} %"
        marks += element("text", text, x=scale(tick), y=bottom + 10, class_="tick middle")
    return svg(bottom + 14, label, marks)


Estimates = Sequence[tuple[str, float, float | None, float | None]]
"""Title, value, and the two ends of its interval, which are ``None`` where there is none."""


def forest(rows: Estimates, *, label: str, said: str = "95 % interval") -> Markup:
    """Ratios to a baseline with their intervals, one per row, on a logarithmic axis; 1 is no difference.

    The axis holds at least 1/2 to 2, so that a small difference looks small; intervals are cut at 1/8 and 8.
    """
    middles = [math.log2(ratio) for _, ratio, _, _ in rows]
    ends = [min(3.0, max(-3.0, math.log2(end))) for _, _, *both in rows for end in both if end is not None]
    scale = spread([*middles, *ends, -1.0, 1.0], 4, WIDTH - 4, padding=0.06)
    ticks = {
        tick: f"{2 ** round(tick)}×" if tick >= 0 else f"1/{2 ** round(-tick)}×"
        for tick in scale.ticks()
        if tick == round(tick)
    }
    return _whiskers(rows, scale, ticks, label=label, form=times, place=math.log2, said=said)


def differences(rows: Estimates, *, label: str, form: Format, said: str = "95 % interval") -> Markup:
    """Differences of fractions of rows with their intervals, one per row; 0 is none.

    The axis holds at least one point to either side, so that a small difference looks small.
    """
    values = [value for _, *all_of in rows for value in all_of if value is not None]
    scale = spread([*values, -0.01, 0.01], 4, WIDTH - 4, padding=0.06)
    ticks = {tick: f"{plain(100 * tick)}" for tick in scale.ticks()}
    return _whiskers(rows, scale, ticks, label=label, form=form, place=lambda value: value, said=said)


def _whiskers(
    rows: Estimates,
    scale: Scale,
    ticks: Mapping[float, str],
    *,
    label: str,
    form: Format,
    place: Callable[[float], float],
    said: str,
) -> Markup:
    """A dot and an interval per row, which ``said`` names, against the line of no difference at 0 of the scale."""

    def at(value: float) -> float:
        return scale(min(scale.high, max(scale.low, place(value))))

    marks = Markup("")
    for index, (title, value, low, high) in enumerate(rows):
        top, y = index * ROW + 20, index * ROW + 30
        ends, known = "", "one seed: no interval"
        if low is not None and high is not None:
            ends = between(low, high, form)
            known = f"{said} {ends}"
        strip = element("rect", x=0, y=top, width=WIDTH, height=20, class_="hit")
        strip += element("line", x1=scale(0), x2=scale(0), y1=top, y2=top + 20, class_="reference")
        if low is not None and high is not None:
            strip += element("line", x1=at(low), x2=at(high), y1=y, y2=y, class_="whisker final")
        strip += element("circle", cx=at(value), cy=y, r=5.5, class_="dot final")
        shown = "" if low == high else ends
        tip = f"{title}: {form(value)}, {known}"
        marks += _row_text(index * ROW + 15, title, form(value), shown) + element("g", strip, data_tip=tip)
    bottom = len(rows) * ROW
    for tick, text in ticks.items():
        marks += element("text", text, x=scale(tick), y=bottom + 10, class_="tick middle")
    return svg(bottom + 14, label, marks)


def interval(
    *, measured: float, low: float, high: float, limit: float, limit_text: str, at_most: bool, form: Format, label: str
) -> Markup:
    """One check: the measured value and its interval against the side of the limit that is allowed (shaded)."""
    scale = spread([low, high, limit, measured, 0.0 if at_most else limit], 2, WIDTH - 2, padding=0.18)
    x, y = scale(limit), 17
    allowed = {"x": scale.start, "width": x - scale.start} if at_most else {"x": x, "width": scale.end - x}
    anchor = "end" if x > WIDTH * 0.75 else "start" if x < WIDTH * 0.25 else "middle"
    tip = f"measured {form(measured)}, interval {form(low)} to {form(high)}, {limit_text}"
    marks = element("rect", y=y - 12, height=24, class_="allowed", **allowed)
    marks += element("line", x1=x, x2=x, y1=y - 15, y2=y + 15, class_="limit")
    marks += element("text", limit_text, x=x, y=y + 29, class_=f"tick {anchor}")
    marks += element("line", x1=scale(low), x2=scale(high), y1=y, y2=y, class_="whisker final")
    marks += element("circle", cx=scale(measured), cy=y, r=6, class_="dot final")
    return svg(52, label, element("g", marks, data_tip=tip))


def thin(values: Points, count: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Averages neighbouring (x, y) until at most ``count`` are left."""
    size = math.ceil(len(values) / count)
    chunks = [values[start : start + size] for start in range(0, len(values), size or 1)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def lines(
    series: Mapping[str, Points],
    *,
    label: str,
    form: Format,
    x_name: str = "epoch",
    classes: Sequence[str] = (),
    level: float | None = None,
    size: tuple[float, float] = (WIDTH, 154),
) -> Markup:
    """Lines on one axis, over epochs or what ``x_name`` says. A series of up to 30 points shows each.

    Args:
        series: name to (x, value) points, at least one each.
        form: how a value reads in a tooltip.
        classes: class names of each series; by default the last one is the one to look at.
        level: a value to mark with a dashed line.
        size: width and height.
    """
    drawn = {name: thin(points_) for name, points_ in series.items()}
    everything = [point for points_ in drawn.values() for point in points_]
    width, height = size
    top, bottom, left, right = 8.0, height - 22.0, 44.0, width - 6.0
    x_scale = Scale(0, max(x for x, _ in everything) or 1, left, right)
    y_scale = spread([y for _, y in everything] + ([] if level is None else [level]), bottom, top)
    marks = Markup("")
    ticks = y_scale.ticks(5)
    for tick, text in zip(ticks, aligned(ticks), strict=True):
        y = y_scale(tick)
        marks += element("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        marks += element("text", text, x=left - 7, y=y + 4, class_="tick end")
    for tick in x_scale.ticks():
        text = plain(tick) if tick else f"{x_name} 0"
        marks += element("text", text, x=x_scale(tick), y=bottom + 17, class_="tick middle")
    if level is not None:
        marks += element("line", x1=left, x2=right, y1=y_scale(level), y2=y_scale(level), class_="limit")
    for index, points_ in enumerate(drawn.values()):
        kind = classes[index] if classes else "final" if index == len(drawn) - 1 else ""
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points_)
        marks += element("polyline", points=path, class_=f"line {kind}".strip())
        if len(points_) <= 30:
            for x, y in points_:
                marks += element("circle", cx=x_scale(x), cy=y_scale(y), r=3, class_=f"dot {kind}".strip())
    return svg(height, label, marks, _bands(drawn, x_scale, top, bottom, form, x_name), width=width)


def _bands(drawn: Mapping[str, Points], x_scale: Scale, top: float, bottom: float, form: Format, x_name: str) -> Markup:
    """Invisible columns around each x, so that the pointer need not hit a line."""
    values: dict[float, list[str]] = {}
    for name, points_ in drawn.items():
        for x, y in points_:
            values.setdefault(x, []).append(f"{name} {form(y)}")
    xs = sorted(values)
    edges = [x_scale.start, *(x_scale((a + b) / 2) for a, b in pairwise(xs)), x_scale.end]
    bands = Markup("")
    for x, (low, high) in zip(xs, pairwise(edges), strict=True):
        tip = f"{x_name} {x:.2f}: {', '.join(values[x])}"
        bands += element("rect", x=low, y=top, width=high - low, height=bottom - top, class_="hit", data_tip=tip)
    return bands


def histogram(edges: Sequence[float], counts: Sequence[int], *, label: str, x_name: str) -> Markup:
    """Bars of counts between edges (one more edge than counts)."""
    top, bottom = 8, 96
    x_scale, y_scale = Scale(edges[0], edges[-1], 0, WIDTH), Scale(0, max(*counts, 1), bottom, top)
    marks = Markup("")
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        x, width = x_scale(low), x_scale(high) - x_scale(low)
        tip = f"{low:g} to {high:g} {x_name}: {count:,} rows"
        bar = element("rect", x=x, y=top, width=width, height=bottom - top, class_="hit")
        y = y_scale(count)
        bar += element("rect", x=x + 0.5, y=y, width=max(width - 1, 0.5), height=bottom - y, class_="bar")
        marks += element("g", bar, data_tip=tip)
    marks += element("line", x1=0, x2=WIDTH, y1=bottom, y2=bottom, class_="zero")
    for tick in x_scale.ticks(6):
        anchor = "start" if tick == edges[0] else "end" if x_scale(tick) > WIDTH - 10 else "middle"
        marks += element("text", plain(tick), x=x_scale(tick), y=bottom + 15, class_=f"tick {anchor}")
    return svg(bottom + 20, label, marks)


@dataclass(frozen=True)
class Mark:
    """A point of a scatter chart."""

    x: float
    y: float
    tip: str
    kind: str = ""
    """Class name."""
    link: str = ""
    """Address that a click opens."""


def scatter(
    marks: Sequence[Mark],
    *,
    label: str,
    x_name: str,
    y_name: str,
    level: float | None = None,
    joined: Points = (),
    size: tuple[float, float] = (WIDTH, 240),
) -> Markup:
    """Points in two quantities, at least one; what has a class name is drawn above what has none.

    Args:
        level: a value of y to mark with a dashed line.
        joined: points to join by steps, such as a Pareto front, from left to right.
        size: width and height.
    """
    width, height = size
    top, bottom, left, right = 20.0, height - 36.0, 52.0, width - 12.0
    x_scale = spread([mark.x for mark in marks], left, right)
    y_scale = spread([mark.y for mark in marks] + ([] if level is None else [level]), bottom, top)
    drawn = element("text", y_name, x=2, y=12, class_="tick start")
    drawn += element("text", x_name, x=right, y=height - 3, class_="tick end")
    y_ticks, x_ticks = y_scale.ticks(6), x_scale.ticks(8)
    for tick, text in zip(y_ticks, aligned(y_ticks), strict=True):
        y = y_scale(tick)
        drawn += element("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        drawn += element("text", text, x=left - 7, y=y + 4, class_="tick end")
    for tick, text in zip(x_ticks, aligned(x_ticks), strict=True):
        drawn += element("text", text, x=x_scale(tick), y=bottom + 17, class_="tick middle")
    if level is not None:
        drawn += element("line", x1=left, x2=right, y1=y_scale(level), y2=y_scale(level), class_="limit")
    if joined:
        corners = [(x_scale(joined[0][0]), y_scale(joined[0][1]))]
        for x, y in joined[1:]:
            corners += [(x_scale(x), corners[-1][1]), (x_scale(x), y_scale(y))]
        drawn += element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), class_="line final")
    for mark in sorted(marks, key=lambda one: bool(one.kind)):
        kind = f"mark-dot {mark.kind}".strip()
        dot = element("circle", cx=x_scale(mark.x), cy=y_scale(mark.y), r=6, class_=kind, data_tip=mark.tip)
        drawn += element("a", dot, href=mark.link, target="_blank") if mark.link else dot
    return svg(height, label, drawn, width=width)
