"""A study as a page: what each way to train is worth, alone and together, and the optimizers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.ml.statistics.comparison import Estimate, Summary
from tasks.reporting import charts, numbers, page
from tasks.reporting.markdown import table, text


@dataclass(frozen=True)
class Row:
    """A choice by the name that it has in its table."""

    name: str
    note: str
    summary: Summary


@dataclass(frozen=True)
class Study:
    """What was compared, and what it came to."""

    run_id: str
    """MLflow parent run."""
    recipe: str
    base_model: str
    preset: str
    seeds: tuple[int, ...]
    target: float
    """Quality on the selection split to which time is measured."""
    epochs: float
    rows: int
    """Of the training split."""
    selection_rows: int
    baseline: Row
    alone: tuple[Row, ...]
    together: tuple[Row, ...]
    optimizers: tuple[Row, ...]
    left_out: Mapping[str, str]
    """Names of choices without a result, with the reason."""

    def tables(self) -> dict[str, tuple[Row, ...]]:
        """The rows of each table that has any, the baseline first."""
        found = {"alone": self.alone, "together": self.together, "optimizers": self.optimizers}
        return {name: (self.baseline, *rows) for name, rows in found.items() if rows}

    def summaries(self) -> list[Summary]:
        """What every table rests on, each once."""
        unique = {id(row.summary): row.summary for rows in self.tables().values() for row in rows}
        return list(unique.values())


TABLES = {
    "alone": (
        "Each choice alone",
        "One thing changed in the baseline: {baseline}.",
    ),
    "together": (
        "All together, one on top of the other",
        "Each row adds one choice to the row above it, whether it helps or not: accumulation and checkpointing buy "
        "memory with time.",
    ),
    "optimizers": (
        "Optimizers side by side",
        "On top of the choices that neither trade time for memory nor split the work. Each has the recipe's learning "
        "rate times the factor between its scale and the recipe's optimizer's: a place to start from, not a search.",
    ),
}
HEADER = ("", "seconds to target", "sooner", "samples/s", "faster", "peak memory", "quality", "against baseline")


def _cell(estimate: Estimate | None, form: charts.Format) -> tuple[str, str]:
    return (form(estimate.measured), numbers.uncertainty(estimate, form)) if estimate else ("–", "")


def _points(value: float) -> str:
    return numbers.points(value, signed=True)


def cells(row: Row, study: Study) -> Iterator[tuple[str, str]]:
    """What a table shows of a row after its name: each value, and its interval or a remark."""
    summary, several = row.summary, len(row.summary.trials)
    if summary.seconds is None:
        reached = f"{summary.reached} of {several} seeds reached it" if several > 1 else ""
        yield "not reached", reached
    else:
        yield _cell(summary.seconds, numbers.duration)
    yield _cell(summary.sooner, numbers.times)
    yield _cell(summary.samples_per_s, numbers.number)
    yield _cell(summary.faster, numbers.times)
    yield numbers.unit(summary.peak_memory_mb, "MB"), numbers.times(summary.memory.measured) if summary.memory else ""
    yield _cell(summary.quality, numbers.percent)
    yield _cell(summary.better, _points)


def remarks(study: Study) -> list[str]:
    """What a reader must know of how the trials were measured."""
    trials = [trial for summary in study.summaries() for trial in summary.trials]
    found = []
    if len(study.seeds) == 1:
        found.append("One seed: ratios and times have no intervals. What a second seed would show is not known.")
    machines = sorted({f"{trial.about['machine']} ({trial.about['device']})" for trial in trials})
    if len(machines) > 1:
        found.append(f"Trials come from different machines, and their times do not compare: {'; '.join(machines)}.")
    days = sorted({trial.about["finished"][:10] for trial in trials})
    if len(days) > 1:
        found.append(f"Trials were measured between {days[0]} and {days[-1]}: those measured before were not repeated.")
    disturbed = [trial for trial in trials if trial.about["others_share"] > page.DISTURBING]
    if disturbed:
        most = numbers.percent(max(trial.about["others_share"] for trial in disturbed), 0)
        found.append(
            f"Other processes took up to {most} of the processor during {len(disturbed)} of {len(trials)} trials: "
            "their times are longer than they would be alone."
        )
    return found


def headline(study: Study) -> str:
    """What the study shows, in one sentence."""
    rows = study.together or study.alone or study.optimizers
    compared = [(row.summary.faster.measured, row) for row in rows if row.summary.faster]
    if not compared:
        return "Nothing could be compared with the baseline."
    faster, row = max(compared, key=lambda one: one[0])
    name = row.name.removeprefix("+ ")
    what = f"everything up to {name}" if study.together else name
    text = f"With {what}, training computes {numbers.times(faster)} the samples per second of the baseline"
    goal = numbers.percent(study.target, 0)
    first, then = study.baseline.summary.seconds, row.summary.seconds
    if then is None:
        return f"{text}; {goal} quality was not reached with every seed."
    took = numbers.duration(then.measured)
    if first is None:
        return f"{text}, and reaches {goal} quality in {took}, which the baseline does not in {study.epochs:g} epochs."
    return f"{text}, and reaches {goal} quality in {took} instead of {numbers.duration(first.measured)}."


def _curve(row: Row) -> list[tuple[float, float]]:
    """The mean over seeds of each evaluation's seconds and quality."""
    columns = zip(*(trial.curve for trial in row.summary.trials), strict=True)
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in columns]


def _race(name: str, rows: Sequence[Row], study: Study) -> dict[str, Any]:
    """Quality over seconds of training; an ordered ramp for choices on top of each other, else hues."""
    kind = "step" if name == "together" else "hue"
    classes = [f"{kind}{index}" if index else "hue0" for index in range(len(rows))]
    chart = charts.lines(
        {row.name: _curve(row) for row in rows}, label=f"{TABLES[name][0]}: quality over seconds of training",
        form=numbers.percent, x_name="second", classes=classes, level=study.target, size=(720, 300),
    )  # fmt: skip
    return {"chart": chart, "keys": list(zip(classes, [row.name for row in rows], strict=True))}


def _forests(name: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A panel of ratios for each quantity that has any."""
    panels = []
    for field, title, note in (
        ("faster", "Samples per second", "times the baseline's; more is better"),
        ("sooner", "Time to target", "times sooner than the baseline; more is better"),
        ("memory", "Peak memory", "times the baseline's; less is better"),
    ):
        shown = [(row.name, estimate) for row in rows if (estimate := getattr(row.summary, field))]
        if shown:
            chart = charts.forest(shown, label=f"{TABLES[name][0]}: {title}")
            panels.append({"title": title, "note": note, "chart": chart})
    return panels


def sections(study: Study) -> list[dict[str, Any]]:
    """Each table with its charts."""
    return [
        {
            "id": name,
            "title": TABLES[name][0],
            "note": TABLES[name][1].format(baseline=study.baseline.note),
            "race": _race(name, rows, study),
            "forests": _forests(name, rows),
            "rows": [{"name": row.name, "note": row.note, "cells": list(cells(row, study))} for row in rows],
        }
        for name, rows in study.tables().items()
    ]


def trials(study: Study) -> list[dict[str, Any]]:
    """A row per trial: what was measured, where and when."""
    names: dict[int, str] = {}
    for group, rows in study.tables().items():
        for row in rows:
            names.setdefault(id(row.summary), row.name if row is study.baseline else f"{group}: {row.name}")
    return [
        {
            "name": names[id(summary)],
            "seed": trial.seed,
            "seconds": numbers.duration(trial.training_s),
            "samples_per_s": numbers.number(trial.samples_per_s),
            "memory": numbers.unit(trial.peak_memory_mb, "MB"),
            "quality": numbers.percent(trial.quality),
            **trial.about,
            "others": numbers.percent(trial.about["others_share"], 0),
        }
        for summary in study.summaries()
        for trial in summary.trials
    ]


def document(study: Study) -> dict[str, Any]:
    """Everything as JSON has it, in seconds, 10^6 bytes and fractions."""
    return asdict(study)


def metrics(study: Study) -> dict[str, float]:
    """Numbers to compare studies by: ``table/choice/quantity``."""
    found: dict[str, float] = {}
    for group, rows in study.tables().items():
        for row in rows:
            summary, name = row.summary, row.name.removeprefix("+ ")
            values = {
                "samples_per_s": summary.samples_per_s, "times_faster": summary.faster, "times_sooner": summary.sooner,
                "seconds_to_target": summary.seconds, "quality": summary.quality,
            }  # fmt: skip
            found |= {f"{group}/{name}/{key}": one.measured for key, one in values.items() if one}
            found[f"{group}/{name}/peak_memory_mb"] = summary.peak_memory_mb
    return found


def markdown(study: Study) -> str:
    """The tables for a run's page."""
    lines = [text(line) for line in (headline(study), *remarks(study))]
    for name, rows in study.tables().items():
        lines += ["", f"### {TABLES[name][0]}", ""]
        shown = [[f"{value} ({more})" if more else value for value, more in cells(row, study)] for row in rows]
        lines.append(table(HEADER, [[row.name, *values] for row, values in zip(rows, shown, strict=True)]))
    lines += ["", *(f"- {name} is left out: {text(reason)}" for name, reason in study.left_out.items())]
    return "\n".join(lines)


def render(study: Study, surroundings: page.Surroundings) -> str:
    """Returns the page as HTML that needs nothing else."""
    return page.fill(
        "study",
        surroundings,
        study=study,
        left_out={numbers.capital(name): reason for name, reason in study.left_out.items()},
        headline=headline(study),
        remarks=remarks(study),
        sections=sections(study),
        header=HEADER,
        trials=trials(study),
    )
