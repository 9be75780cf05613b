"""Charts as inline SVG: a few shapes with class names; the page's stylesheet gives them colour, light or dark.

Lengths are in SVG user units: CSS pixels at the width of ``WIDTH``. Marks that carry ``data-tip`` answer the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from tasks.reporting.measures import Measure
from tasks.reporting.numbers import aligned, between, change, plain, times, uncertainty
from tasks.reporting.numbers import unit as measure

if TYPE_CHECKING:
    from tasks.ml.statistics.comparison import Estimate

WIDTH = 340
ROW = 48
MAX_POINTS = 160

Format = Callable[[float], str]
Points = Sequence[tuple[float, float]]
Ends = tuple[float, float]
"""The two ends of an interval."""
Shape = tuple[int, int]
"""Batch and length."""
Ticks = Mapping[float, str]
"""Where ticks are on a scale, and their text."""


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
    """A map of values onto pixels: linear, or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(one) if self.is_log else one for one in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Returns up to about ``count`` round values (steps of 1, 2 or 5 times a power of ten) inside the scale."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def powers(self, *factors: float, base: int = 10) -> list[float]:
        """Returns powers of ``base``, times each factor, inside the scale: the ticks of a logarithmic one."""
        exponents = range(math.floor(math.log(self.low, base)), math.ceil(math.log(self.high, base)) + 1)
        found = [factor * float(base) ** exponent for exponent in exponents for factor in factors or (1,)]
        return [tick for tick in found if self.low <= tick <= self.high]


def spread(values: Sequence[float], start: float, end: float, *, padding: float = 0.08) -> Scale:
    """A scale that holds all values with some air; a single value gets a span around it."""
    low, high = min(values), max(values)
    margin = (high - low) * padding or abs(high) * padding or 1.0
    return Scale(low - margin, high + margin, start, end)


def across(scale: Scale, ticks: Ticks, left: float, right: float) -> Markup:
    """A line across the chart for each tick of an upright scale, and its text at the left."""
    marks = Markup("")
    for tick, text in ticks.items():
        y = scale(tick)
        marks += element("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        marks += element("text", text, x=left - 7, y=y + 4, class_="tick end")
    return marks


def below(scale: Scale, ticks: Ticks, y: float) -> Markup:
    """The text of each tick of a level scale."""
    return Markup("").join(element("text", text, x=scale(at), y=y, class_="tick middle") for at, text in ticks.items())


def _aligned(ticks: Sequence[float]) -> dict[float, str]:
    return dict(zip(ticks, aligned(ticks), strict=True))


def _row_text(y: float, label: str, value: str, note: str = "") -> Markup:
    number_ = element("text", element("tspan", note, class_="note"), f" {value}", x=WIDTH, y=y, class_="value end")
    return element("text", label, x=0, y=y, class_="label") + number_


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
        kind = "bar" if index < len(rows) - 1 else "bar final"
        bar = element("rect", x=0, y=y + 23, width=scale(value), height=14, class_=kind)
        if before is not None and before > value:
            width = scale(before) - scale(value)
            bar += element("rect", x=scale(value), y=y + 23, width=width, height=14, class_="gone")
        if ends:
            bar += element("line", x1=scale(ends[0]), x2=scale(ends[1]), y1=y + 30, y2=y + 30, class_="error")
        tip = f"{title}: {measure(value, unit)}" + (f", {step} against the stage before" if step else "")
        tip += f", 95 % interval {between(*ends, lambda value: measure(value, unit))}" if ends else ""
        marks += _row_text(y + 15, title, measure(value, unit), step) + element("g", bar, data_tip=tip)
        before = value
    return svg(len(rows) * ROW, f"{label} after each stage", marks)


_Strip = tuple[str, float, Ends | None, str, str, str]
"""Title, value, the ends of its interval, both in words, and what a tip says."""


def _strips(
    rows: Sequence[_Strip], scale: Scale, ticks: Ticks, levels: Mapping[str, float], label: str, final: int = 0
) -> Markup:
    """A dot and its interval, cut at the ends of the scale, per row; rows from ``final`` on are those to look at.

    Levels to hold them against have class names.
    """

    def at(value: float) -> float:
        return scale(min(scale.high, max(scale.low, value)))

    marks = Markup("")
    for index, (title, value, ends, shown, note, tip) in enumerate(rows):
        top, y, kind = index * ROW + 20, index * ROW + 30, " final" if index >= final else ""
        strip = element("rect", x=0, y=top, width=WIDTH, height=20, class_="hit")
        for name, level in levels.items():
            strip += element("line", x1=at(level), x2=at(level), y1=top, y2=top + 20, class_=name)
        if ends:
            strip += element("line", x1=at(ends[0]), x2=at(ends[1]), y1=y, y2=y, class_=f"whisker{kind}")
        strip += element("circle", cx=at(value), cy=y, r=5.5, class_=f"dot{kind}")
        marks += _row_text(index * ROW + 15, title, shown, note) + element("g", strip, data_tip=tip)
    bottom = len(rows) * ROW
    return svg(bottom + 14, label, marks, below(scale, ticks, bottom + 10))


def quality(
    rows: Sequence[tuple[str, float, Ends | None, str]], *, label: str, floor: float | None, measure: Measure
) -> Markup:
    """Quality of each stage as a dot with its 95 % interval, against the teacher and the lowest value allowed.

    Args:
        measure: how quality is said.
        rows: stage title, quality, the ends of its interval and what these are, in order; the first is the teacher.
        floor: the teacher's quality less what the budget allows to lose.
    """
    bounds = [end for _, quality, ends, _ in rows for end in (quality, *(ends or ()))]
    levels = {"reference": rows[0][1]} | ({} if floor is None else {"limit": floor})
    scale = spread([*bounds, *levels.values()], 0, WIDTH, padding=0.04)
    strips = []
    for index, (title, quality, ends, about) in enumerate(rows):
        step = measure.difference(quality - rows[index - 1][1]) if index else ""
        tip = f"{title}: {measure.precise(quality)}"
        strips.append((title, quality, ends, measure.value(quality), step, tip + (f", {about}" if about else "")))
    ticks = {tick: measure.tick(tick) for tick in scale.ticks()}
    return _strips(strips, scale, ticks, levels, label, final=len(rows) - 1)


Estimates = Sequence[tuple[str, "Estimate"]]
"""Title and value with its interval."""


def _estimates(rows: Estimates, form: Format, said: str) -> list[_Strip]:
    """Rows whose intervals ``said`` names."""
    strips: list[_Strip] = []
    for title, one in rows:
        ends = None if one.low is None or one.high is None else (one.low, one.high)
        tip = f"{title}: {form(one.measured)}, {f'{said} {between(*ends, form)}' if ends else 'one seed: no interval'}"
        strips.append((title, one.measured, ends, form(one.measured), uncertainty(one, form), tip))
    return strips


def forest(rows: Estimates, *, label: str, said: str = "95 % interval") -> Markup:
    """Ratios to a baseline with their intervals, one per row, on a logarithmic axis; 1 is no difference.

    The axis holds at least 1/2 to 2, so that a small difference looks small; intervals are cut at 1/8 and 8.
    """
    seen = [min(8.0, max(0.125, value)) for _, one in rows for value in (one.low, one.high) if value is not None]
    seen += [0.5, 2.0, *(one.measured for _, one in rows)]
    scale = Scale(min(seen) / 1.15, max(seen) * 1.15, 4, WIDTH - 4, is_log=True)
    ticks = {tick: f"{tick:g}×" if tick >= 1 else f"1/{1 / tick:g}×" for tick in scale.powers(base=2)}
    return _strips(_estimates(rows, times, said), scale, ticks, {"reference": 1}, label)


def differences(rows: Estimates, *, label: str, form: Format, said: str = "95 % interval") -> Markup:
    """Differences of fractions of rows with their intervals, one per row; 0 is none.

    The axis holds at least one point to either side, so that a small difference looks small.
    """
    values = [value for _, one in rows for value in astuple(one) if value is not None]
    scale = spread([*values, -0.01, 0.01], 4, WIDTH - 4, padding=0.06)
    ticks = {tick: plain(100 * tick) for tick in scale.ticks()}
    return _strips(_estimates(rows, form, said), scale, ticks, {"reference": 0}, label)


def interval(
    *, measured: float, low: float, high: float, limit: float, limit_text: str, at_most: bool, form: Format, label: str
) -> Markup:
    """One check: the measured value and its interval against the side of the limit that is allowed (shaded)."""
    scale = spread([low, high, limit, measured, 0.0 if at_most else limit], 2, WIDTH - 2, padding=0.18)
    x, y = scale(limit), 17
    allowed = {"x": scale.start, "width": x - scale.start} if at_most else {"x": x, "width": scale.end - x}
    anchor = "end" if x > WIDTH * 0.75 else "start" if x < WIDTH * 0.25 else "middle"
    tip = f"measured {form(measured)}, interval {between(low, high, form)}, {limit_text}"
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
    marks = across(y_scale, _aligned(y_scale.ticks(5)), left, right)
    marks += below(x_scale, {tick: plain(tick) if tick else f"{x_name} 0" for tick in x_scale.ticks()}, bottom + 17)
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
    drawn += across(y_scale, _aligned(y_scale.ticks(6)), left, right)
    drawn += below(x_scale, _aligned(x_scale.ticks(8)), bottom + 17)
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


def heat(cells: Mapping[Shape, Any], skipped: Mapping[Shape, str] = MappingProxyType({})) -> dict[str, Any]:
    """A table of cells by batch and length for the template to set; of those skipped it says why."""
    batches, lengths = (sorted(set(one)) for one in zip(*cells, *skipped, strict=True))
    return {"batches": batches, "lengths": lengths, "cells": cells, "skipped": skipped}
