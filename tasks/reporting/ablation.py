"""An ablation as a page: what each technique is worth in a recipe, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.ml.proof.ablation import LEVEL, SLIGHT, UNCERTAIN, Effect, Summary
from tasks.ml.statistics.comparison import Estimate
from tasks.reporting import charts, numbers, page
from tasks.reporting.markdown import table, text


@dataclass(frozen=True)
class Row:
    """A technique, and the models made with and without it."""

    name: str
    note: str
    is_used: bool
    """Whether the recipe uses it."""
    used: Summary
    spared: Summary
    effect: Effect


@dataclass(frozen=True)
class Ablation:
    """What was compared, and what it came to."""

    run_id: str
    """MLflow parent run."""
    recipe: str
    base_model: str
    seeds: tuple[int, ...]
    selection_rows: int
    teacher_quality: float
    """On the selection split, mean over seeds."""
    whole: Summary
    """The recipe as it is."""
    rows: tuple[Row, ...]
    machines: tuple[str, ...]
    left_out: Mapping[str, str]
    """Names of techniques without a result, with the reason."""


HEADER = (
    "technique", "in the recipe", "worth it?", "quality, points", "agreement, points", "size", "p50",
    "rows/s at batch 16",
)  # fmt: skip
MOST_NAMES = 8
"""Techniques that a sentence lists; of more it says how many."""
NOTHING = "no difference shown"
WORDS = {
    "quality": ("better", "worse"),
    "agreement": ("nearer to the teacher", "further from the teacher"),
    "size": ("smaller", "larger"),
    "latency": ("faster", "slower"),
    "throughput": ("more rows/s", "fewer rows/s"),
}


def judgement(effect: Effect) -> str:
    """``pays``, ``trades``, ``does not pay`` or ``no difference``, by what is shown to change for sure."""
    signs = set(effect.signs().values())
    if 1 in signs:
        return "trades" if -1 in signs else "pays"
    return "does not pay" if -1 in signs else NOTHING


def changes(effect: Effect) -> str:
    """What is shown to change, in words: ``smaller, faster; less accurate``."""
    signs = effect.signs()
    better = [WORDS[name][0] for name, sign in signs.items() if sign > 0]
    worse = [WORDS[name][1] for name, sign in signs.items() if sign < 0]
    return "; ".join(", ".join(words) for words in (better, worse) if words)


def _points(value: float) -> str:
    """Percentage points without their name, which the header or the title has."""
    return numbers.points(value, signed=True).partition(numbers.SPACE)[0]


def cells(row: Row) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What the table says of a technique after its name: each value, and the lines below it."""
    effect, used, spared = row.effect, row.used, row.spared

    def lines(*found: str) -> tuple[str, ...]:
        return tuple(line for line in found if line)

    yield ("yes" if row.is_used else "no"), ()
    yield judgement(effect), lines(*changes(effect).split("; "))
    yield _points(effect.quality.measured), lines(numbers.uncertainty(effect.quality, _points))
    alike = effect.agreement
    yield (_points(alike.measured), lines(numbers.uncertainty(alike, _points))) if alike else ("–", ())
    for ratio, before, after, unit in (
        (effect.smaller, spared.size_mb, used.size_mb, "MB"),
        (effect.faster, spared.latency_p50_ms, used.latency_p50_ms, "ms"),
        (effect.throughput, spared.throughput_per_s, used.throughput_per_s, ""),
    ):
        after_text = numbers.unit(after.measured, unit) if unit else numbers.number(after.measured)
        below = f"{numbers.number(before.measured)} → {after_text}"
        yield numbers.times(ratio.measured), lines(numbers.uncertainty(ratio, numbers.times), below)


def in_words(row: Row) -> list[str]:
    """The technique's name and cells, each in one line."""
    return [row.name, *(f"{value} ({'; '.join(more)})" if more else value for value, more in cells(row))]


def remarks(found: Ablation) -> list[str]:
    """What a reader must know of how this was measured."""
    said = []
    if len(found.seeds) == 1:
        said.append(
            "One seed: intervals of quality hold for other rows, those of times for other rounds, and none for another "
            "seed."
        )
    if claims := [claim for row in found.rows for claim in row.effect.claims.values()]:
        ends = sorted({claim.confidence for claim in claims})
        levels = " to ".join(dict.fromkeys(numbers.percent(one, 2) for one in (ends[0], ends[-1])))
        said.append(
            f"{len(claims)} comparisons are judged together. Holm's procedure allows for their number, so that the "
            f"chance of any false claim stays below {numbers.percent(LEVEL, 0)}: their intervals are at {levels}."
        )
    said.append(f"Sizes and times within {numbers.percent(SLIGHT, 0)} of each other count as no difference.")
    if len(found.machines) > 1:
        said.append(f"Models come from different machines: {'; '.join(found.machines)}.")
    idle = [row.name for row in found.rows if row.is_used and judgement(row.effect) in ("does not pay", NOTHING)]
    if idle:
        said.append(f"The recipe uses what is not shown to pay: {', '.join(idle)}.")
    return said


def headline(found: Ablation) -> str:
    """What the ablation shows, in one sentence."""
    groups: dict[str, list[str]] = {}
    for row in found.rows:
        groups.setdefault(judgement(row.effect), []).append(row.name)

    def listed(names: list[str]) -> str:
        return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} techniques"

    said = [
        f"{listed(groups[kind])} {one if len(groups[kind]) == 1 else many}"
        for kind, one, many in (
            ("pays", "pays", "pay"),
            ("trades", "trades one thing for another", "trade one thing for another"),
            ("does not pay", "does not pay", "do not pay"),
            (NOTHING, "makes no difference that could be shown", "make no difference that could be shown"),
        )
        if kind in groups
    ]
    return numbers.capital("; ".join(said) + ".") if said else "There was nothing to compare."


def _panels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A panel of intervals for each quantity."""
    panels = []
    for name, title, note in (
        ("quality", "Quality, points", "with it minus without it; right of the line it helps"),
        ("agreement", "Agreement with the teacher, points", "with it minus without it"),
        ("smaller", "Times smaller", "size without it over size with it"),
        ("faster", "Times faster", "p50 without it over p50 with it, one sentence"),
        ("throughput", "Times the rows/s", "at batch 16, with it over without it"),
    ):
        drawn = [(row.name, found) for row in rows if (found := getattr(row.effect, name))]
        if not drawn:
            continue
        if name in ("quality", "agreement"):
            chart = charts.differences(drawn, label=title, form=_points, said="interval")
        else:
            chart = charts.forest(drawn, label=title, said="interval")
        panels.append({"title": title, "note": note, "chart": chart})
    return panels


def whole(found: Ablation) -> list[dict[str, str]]:
    """The recipe's own model: each value with its interval over seeds."""
    one = found.whole
    shown: tuple[tuple[str, Estimate | None, charts.Format], ...] = (
        ("quality", one.quality, numbers.percent),
        ("agreement", one.agreement, numbers.percent),
        ("size", one.size_mb, lambda value: numbers.unit(value, "MB")),
        ("p50", one.latency_p50_ms, lambda value: numbers.unit(value, "ms")),
        ("rows/s", one.throughput_per_s, numbers.number),
    )
    return [numbers.tile(form(one.measured), name, numbers.uncertainty(one, form)) for name, one, form in shown if one]


def document(found: Ablation) -> dict[str, Any]:
    """Everything as JSON has it, in MB, ms and fractions."""
    shown = asdict(found)
    for row, one in zip(shown["rows"], found.rows, strict=True):
        row["judgement"] = judgement(one.effect)
    return shown


def metrics(found: Ablation) -> dict[str, float]:
    """Numbers to compare ablations by: ``technique/quantity``, and its interval's ends."""
    values: dict[str, float] = {}
    for row in found.rows:
        for quantity in ("smaller", *UNCERTAIN):
            found_here: Estimate | None = getattr(row.effect, quantity)
            for end, value in (vars(found_here) if found_here else {}).items():
                if value is not None:
                    name = quantity if end == "measured" else f"{quantity}_{end}"
                    values[f"{row.name}/{name}"] = value
        values |= {f"{row.name}/{quantity}_p": claim.adjusted_p_value for quantity, claim in row.effect.claims.items()}
    return values


def markdown(found: Ablation) -> str:
    """The table for a run's page."""
    lines = [text(line) for line in (headline(found), *remarks(found))]
    lines += ["", table(HEADER, [list(in_words(row)) for row in found.rows])]
    left_out = (f"- {name} is left out: {text(reason)}" for name, reason in found.left_out.items())
    return "\n".join([*lines, "", *left_out])


def render(found: Ablation, surroundings: page.Surroundings) -> str:
    """Returns the page as HTML that needs nothing else."""
    return page.fill(
        "ablation",
        surroundings,
        found=found,
        headline=headline(found),
        remarks=remarks(found),
        tiles=whole(found),
        panels=_panels(found.rows),
        rows=[{"name": row.name, "note": row.note, "cells": list(cells(row))} for row in found.rows],
        header=HEADER,
    )
