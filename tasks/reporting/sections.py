"""The sections of the report: what each shows, as plain values and charts for the template to set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tasks.contracts import Check, CheckStatus, Outcome, StageResult
from tasks.reporting import charts, numbers
from tasks.reporting.evidence import TITLES


class Reading(NamedTuple):
    """How a check is said: its name in words, a measured value, and a limit as it was written in the recipe."""

    name: str
    value: charts.Format
    limit: charts.Format


CHECKS = {
    "quality_drop": Reading("accuracy lost", numbers.points, lambda x: f"{numbers.plain(100 * x)} points"),
    "shrink": Reading("smaller", numbers.times, lambda x: f"{numbers.plain(x)}×"),
    "speedup": Reading("faster", numbers.times, lambda x: f"{numbers.plain(x)}×"),
}
"""The checks known by name. Others keep their name and plain numbers."""

SYMBOLS = {CheckStatus.PASSED: "✓", CheckStatus.FAILED: "✕", CheckStatus.UNDECIDABLE: "?"}

"""Fields of a point of a history that are not parts of a composed loss."""

SPEED_FIELDS = {
    "latency_p50_ms": 3,
    "latency_p95_ms": 3,
    "latency_p99_ms": 3,
    "throughput_per_s": 3,
    "load_time_s": 2,
    "peak_memory_mb": 2,
}
"""What the table of speeds shows, with significant digits."""

Row = Mapping[str, Any]


def reading(check: Check) -> Reading:
    """Returns how a check is said."""
    return CHECKS.get(check.name, Reading(check.name.replace("_", " "), numbers.number, numbers.plain))


def limit(check: Check) -> str:
    """Returns a limit in words: ``at least 6×``."""
    return f"{check.direction.replace('_', ' ')} {reading(check).limit(check.limit)}"


def headline(checks: Sequence[Check]) -> str:
    """Returns what the run came to in one sentence, from what was measured."""
    found = {check.name: check.measured for check in checks}
    if set(found) != set(CHECKS):
        return "; ".join(check.explanation for check in checks) + "."
    drop = found["quality_drop"]
    if drop > 0:
        cost = f"at a cost of {numbers.points(drop)} of accuracy"
    else:
        cost = f"and {numbers.points(-drop)} more accurate" if drop else "with the same accuracy"
    shrink, speedup = numbers.times(found["shrink"]), numbers.times(found["speedup"])
    return f"{shrink} smaller and {speedup} faster than its teacher, {cost}."


def tiles(checks: Sequence[Check], rows: Sequence[Row]) -> list[dict[str, str]]:
    """The headline numbers: one per check, with the values of the first and last model that it compares."""
    compared = {
        "quality_drop": ("accuracy", numbers.percent),
        "shrink": ("size_mb", lambda value: numbers.unit(value, "MB")),
        "speedup": ("latency_p50_ms", lambda value: numbers.unit(value, "ms")),
    }
    found = []
    for check in checks:
        name, form, _ = reading(check)
        value = form(check.measured)
        if check.name == "quality_drop":
            value, name = numbers.points(-check.measured, signed=True), "accuracy"
        figure, _, unit = value.partition(numbers.SPACE)
        key, form = compared.get(check.name, ("", form))
        ends = [row[key] for row in (rows[0], rows[-1]) if row.get(key) is not None] if rows else []
        detail = " → ".join(form(end) for end in ends) if len(ends) == 2 else ""
        found.append({"figure": figure, "unit": unit, "name": name, "detail": detail})
    return found


def checks(found: Sequence[Check]) -> list[dict[str, Any]]:
    """The verdict: each check with its interval drawn against the limit."""
    rows = []
    for check in found:
        name, form, _ = reading(check)
        low = form(check.low).partition(numbers.SPACE)[0]
        chart = charts.interval(
            measured=check.measured, low=check.low, high=check.high, limit=check.limit, limit_text=limit(check),
            at_most=check.direction == "at_most", form=form, label=f"{name}: {check.explanation}",
        )  # fmt: skip
        rows.append({
            "name": name,
            "value": form(check.measured),
            "interval": "exact" if check.low == check.high else f"{low} to {form(check.high)}",
            "n": f"{check.n:,}",
            "status": check.status,
            "symbol": SYMBOLS[check.status],
            "explanation": numbers.capital(check.explanation) + ".",
            "chart": chart,
        })  # fmt: skip
    return rows


def waterfall(rows: Sequence[Row], found: Sequence[Check]) -> list[dict[str, Any]]:
    """Quality, size and latency after each stage, as aligned panels."""
    panels = []
    measured = [(row["title"], row["accuracy"], row["n"]) for row in rows if row["accuracy"] is not None]
    if measured:
        allowed = next((check.limit for check in found if check.name == "quality_drop"), None)
        floor = None if allowed is None else measured[0][1] - allowed
        panels.append({
            "title": "Accuracy",
            "note": f"{rows[0]['split']} split, n = {measured[0][2]:,}, with unpaired 95{numbers.SPACE}% intervals",
            "chart": charts.quality(measured, label="Accuracy after each stage", floor=floor),
        })  # fmt: skip
    for key, title, note, unit in (
        ("size_mb", "Size", "weights on disk", "MB"),
        ("latency_p50_ms", "Latency", "p50 of one real sentence", "ms"),
    ):
        values = [(row["title"], row[key]) for row in rows]
        if any(value is not None for _, value in values):
            panels.append({"title": title, "note": note, "chart": charts.waterfall(values, label=title, unit=unit)})
    return panels


def _lines(title: str, model: str, series: Mapping[str, charts.Points], form: charts.Format) -> dict[str, Any]:
    shown = {name: points for name, points in series.items() if points}
    return {"title": title, "lines": list(shown), "chart": charts.lines(shown, label=f"{model}: {title}", form=form)}


def curves(result: StageResult, history: Row) -> dict[str, Any]:
    """The learning curves of one stage: loss and accuracy over epochs, and what they say."""
    points, evaluations, card = history["points"], history["evaluations"], result.scorecard
    title = TITLES.get(result.stage, result.stage)
    # A composed loss (of a distillation) is in other units than the selection split's cross-entropy: never on one axis.
    composed = any(part.endswith("_loss") for point in points for part in point)
    panels = []
    if points:
        loss = {"training": [(point["epoch"], point["loss"]) for point in points]}
        if not composed:
            loss["selection"] = [(point["epoch"], point["loss"]) for point in evaluations]
        name = "Loss against the teacher" if composed else "Loss"
        panels.append(_lines(name, title, loss, numbers.number))
        for key, name in (("gradient_norm", "Gradient norm"), ("learning_rate", "Learning rate")):
            line = {"training": [(point["epoch"], point[key]) for point in points if key in point]}
            panels.append(_lines(name, title, line, numbers.number))
    facts = []
    if evaluations:
        best = max(evaluations, key=lambda point: (point["accuracy"], -point["loss"]))
        facts.append(f"best {numbers.percent(best['accuracy'])} at epoch {best['epoch']:.2g}")
        # Accuracy on training rows is measured once, of the weights that are kept: those of the best evaluation.
        fit = [] if card.train_accuracy is None else [(best["epoch"], 100 * card.train_accuracy)]
        accuracy = {"training": fit, "selection": [(point["epoch"], 100 * point["accuracy"]) for point in evaluations]}
        if len(evaluations) > 1:
            panels.append(_lines("Accuracy, %", title, accuracy, lambda value: numbers.percent(value / 100)))
    if card.overfit_gap is not None:
        facts.append(f"train{numbers.MINUS}selection gap {numbers.points(card.overfit_gap)}")
    if card.samples_per_s is not None:
        facts.append(f"{numbers.number(card.samples_per_s)} rows/s")
    if shares := [point["flops_utilization"] for point in points if "flops_utilization" in point]:
        facts.append(f"{numbers.percent(sum(shares) / len(shares), 0)} of the measured matrix-product peak")
    return {"title": title, "panels": panels, "facts": facts, "precision": history["notes"].get("precision", "")}


def speed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Latency percentiles, throughput, load time and memory of every model that was timed."""
    return [
        {
            "title": row["title"],
            "runtime": row["runtime"],
            **{
                name: "–" if row.get(name) is None else numbers.number(float(row[name]), SPEED_FIELDS[name])
                for name in SPEED_FIELDS
            },
        }
        for row in rows
        if row["latency_p50_ms"] is not None
    ]


def grid(validation: Row) -> dict[str, Any]:
    """Teacher against shipped at each batch and length: times faster, and ms; empty if not both were timed."""
    timed = {(cell["stage"], cell["batch"], cell["length"]): cell for cell in validation.get("grid", ())}
    pairs = {
        (batch, length): (timed["train", batch, length], cell)
        for (stage, batch, length), cell in timed.items()
        if stage == "validate" and ("train", batch, length) in timed
    }
    if not pairs:
        return {}
    ratios = {key: before["p50_ms"] / after["p50_ms"] for key, (before, after) in pairs.items()}
    low, span = min(ratios.values()), max(ratios.values()) - min(ratios.values())
    cells = {}
    for key, (before, after) in pairs.items():
        milliseconds = f"{numbers.number(before['p50_ms'])} → {numbers.unit(after['p50_ms'], 'ms')}"
        cells[key] = {
            "ratio": numbers.times(ratios[key]),
            "shade": round(6 + 40 * ((ratios[key] - low) / span if span else 0.5)),
            "milliseconds": milliseconds,
            "tip": f"batch {key[0]} × {key[1]} tokens: {milliseconds}, {numbers.number(after['rows_per_s'])} rows/s",
        }
    return {
        "batches": sorted({batch for batch, _ in cells}),
        "lengths": sorted({length for _, length in cells}),
        "cells": cells,
    }


def operators(document: Row) -> list[tuple[str, int | None, int]]:
    """Operator, nodes expected (``None`` if the architecture asks for no number) and found; the expected first."""
    expected, counts = document.get("expected", {}), document.get("counts", {})
    others = sorted(set(counts) - set(expected), key=lambda name: -counts[name])
    return [(name, n, counts.get(name, 0)) for name, n in expected.items()] + [
        (name, None, counts[name]) for name in others
    ]


def data(profile: Row) -> dict[str, Any]:
    """Class balance per split, token lengths of all labelled rows, and what was dropped; empty without a profile."""
    if not profile:
        return {}
    splits = profile["splits"]
    labelled = {name: split for name, split in splits.items() if split["labels"]}
    names = list(dict.fromkeys(label for split in labelled.values() for label in split["labels"]))
    balance = [
        (
            name,
            [
                (split["labels"].get(name, 0), split["labels"].get(name, 0) / split["rows"])
                for split in labelled.values()
            ],
        )
        for name in names
    ]
    counts = [sum(bins) for bins in zip(*(split["token_histogram"] for split in labelled.values()), strict=True)]
    total = sum(split["rows"] for split in labelled.values())
    cut = sum(split["rows_at_max_length"] for split in labelled.values())
    mean = sum(split["tokens_mean"] * split["rows"] for split in labelled.values()) / total
    dropped = [f"{n:,} {reason.replace('_', ' ')}" for reason, n in profile["dropped"].items() if n]
    return {
        "splits": {name: f"{split['rows']:,}" for name, split in labelled.items()},
        "unlabeled": sum(split["rows"] for name, split in splits.items() if name not in labelled),
        "balance": balance,
        "largest": max(part for _, parts in balance for _, part in parts),
        "dropped": ", ".join(dropped) or "none",
        "lengths_note": f"mean {mean:.1f}; {numbers.percent(cut / total)} at the maximum length",
        "lengths": charts.histogram(profile["token_histogram_edges"], counts, label="Tokens per text", x_name="tokens"),
    }


def stages(outcome: Outcome) -> list[dict[str, Any]]:
    """What each stage took and gave."""
    rows = []
    for result in outcome.stages:
        card = result.scorecard
        gave = [
            f"{numbers.percent(card.accuracy)} on {card.split}" if card.accuracy is not None else "",
            numbers.unit(card.size_mb, "MB") if card.size_mb is not None else "",
            numbers.unit(card.num_parameters / 1e6, "M parameters") if card.num_parameters is not None else "",
            f"{card.num_rows:,} rows" if card.num_rows is not None else "",
            f"{numbers.unit(card.latency_p50_ms, 'ms')} p50" if card.latency_p50_ms is not None else "",
        ]
        rows.append({
            "stage": result.stage,
            "status": "Cached" if result.cached else "computed",
            "time": numbers.duration(result.seconds),
            "gave": " · ".join(part for part in gave if part),
            "run_id": result.run_id,
        })  # fmt: skip
    return rows
