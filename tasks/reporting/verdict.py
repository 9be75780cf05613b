"""A verdict as a page says it: what each check came to, in words, and drawn against its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tasks.contracts.values import Check, CheckStatus
from tasks.reporting import charts, measures, numbers


class Reading(NamedTuple):
    """How a check is said: its name in words, a measured value, and a limit as it was written in the recipe."""

    name: str
    value: charts.Format
    limit: charts.Format


CHECKS = {
    "quality_drop": Reading("{metric} lost", numbers.points, lambda x: f"{numbers.plain(100 * x)} points"),
    "shrink": Reading("smaller", numbers.times, lambda x: f"{numbers.plain(x)}×"),
    "speedup": Reading("faster", numbers.times, lambda x: f"{numbers.plain(x)}×"),
    "floor": Reading("above answering without reading", numbers.points, lambda x: f"{numbers.plain(100 * x)} points"),
    "lost_classes": Reading("classes lost", numbers.plain, numbers.plain),
}
"""The checks known by name. Others keep their name and plain numbers."""

HEADLINE = ("quality_drop", "shrink", "speedup")
"""The checks that say what a run came to; the others say what is wrong with it."""

SYMBOLS = {CheckStatus.PASSED: "✓", CheckStatus.FAILED: "✕", CheckStatus.UNDECIDABLE: "?"}


def reading(check: Check) -> Reading:
    """Returns how a check is said."""
    known = CHECKS.get(check.name, Reading(check.name.replace("_", " "), numbers.number, numbers.plain))
    if check.name == "quality_drop":
        measure = measures.of(check.metric)
        known = known._replace(value=measure.lost, limit=measure.limit)
        if not measure.percent:
            return known._replace(name=f"{measure.name} more")
    return known._replace(name=known.name.format(metric=check.metric))


def limit(check: Check) -> str:
    """Returns a limit in words: ``at least 6×``."""
    return f"{check.direction.replace('_', ' ')} {reading(check).limit(check.limit)}"


def headline(checks: Sequence[Check]) -> str:
    """Returns what the run came to in one sentence, from what was measured."""
    found = {check.name: check.measured for check in checks}
    if not set(HEADLINE) <= set(found) <= set(CHECKS):
        return "; ".join(check.explanation for check in checks) + "."
    drop, metric = found["quality_drop"], next(check.metric for check in checks if check.name == "quality_drop")
    measure = measures.of(metric)
    if not measure.percent:
        cost = f"with {measure.lost(abs(drop))} {'more' if drop > 0 else 'fewer'} {measure.name}"
    elif drop > 0:
        cost = f"at a cost of {numbers.points(drop)} of {metric}"
    else:
        cost = f"with {numbers.points(-drop)} more {metric}" if drop else f"with the same {metric}"
    shrink, speedup = numbers.times(found["shrink"]), numbers.times(found["speedup"])
    return f"{shrink} smaller and {speedup} faster than its teacher, {cost}."


def tiles(checks: Sequence[Check], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The headline numbers, with the values of the first and last model that each compares; of a run that did not come
    so far, one per check."""
    compared = {
        "quality_drop": ("quality", lambda value: measures.of(rows[0].get("metric", "")).value(value)),
        "shrink": ("size_mb", lambda value: numbers.unit(value, "MB")),
        "speedup": ("latency_p50_ms", lambda value: numbers.unit(value, "ms")),
    }
    found = []
    for check in [check for check in checks if check.name in HEADLINE] or checks:
        name, form, _ = reading(check)
        value = form(check.measured)
        if check.name == "quality_drop":
            measure = measures.of(check.metric)
            name, value = measure.name, numbers.points(-check.measured, signed=True)
            if not measure.percent:
                value = ("+" if check.measured > 0 else "") + measure.lost(check.measured)
        key, form = compared.get(check.name, ("", form))
        ends = [row[key] for row in (rows[0], rows[-1]) if row.get(key) is not None] if rows else []
        detail = " → ".join(form(end) for end in ends) if len(ends) == 2 else ""
        found.append(numbers.tile(value, name, detail))
    return found


def checks(found: Sequence[Check]) -> list[dict[str, Any]]:
    """The verdict: each check with its interval drawn against the limit."""
    rows = []
    for check in found:
        name, form, _ = reading(check)
        chart = charts.interval(
            measured=check.measured, low=check.low, high=check.high, limit=check.limit, limit_text=limit(check),
            at_most=check.direction == "at_most", form=form, label=f"{name}: {check.explanation}",
        )  # fmt: skip
        rows.append({
            "name": name,
            "value": form(check.measured),
            "interval": "exact" if check.low == check.high else numbers.between(check.low, check.high, form),
            "n": f"{check.n:,}",
            "status": check.status,
            "symbol": SYMBOLS[check.status],
            "explanation": numbers.capital(check.explanation) + ".",
            "chart": chart,
        })  # fmt: skip
    return rows


def tests(check: Check) -> list[str]:
    """What the tests behind a check of quality say, a sentence each."""
    parting = check.parting
    if parting is None:
        return []
    better = "neither is shown to be better" if parting.mcnemar_p >= 1 - parting.confidence else (
        "the teacher is better" if parting.lost > parting.gained else "the shipped model is better"
    )  # fmt: skip
    level, margin = f"{100 * parting.confidence:g}{numbers.SPACE}%", numbers.points(parting.margin)
    proven = "ruled out" if parting.noninferiority_p < 1 - parting.confidence else "not ruled out"
    found = [
        f"Exact McNemar test: {parting.lost:,} rows lost, {parting.gained:,} gained, "
        f"{numbers.p_value(parting.mcnemar_p)}: {better}.",
        f"Non-inferiority (score test): that {margin} or more are lost is {proven}, "
        f"{numbers.p_value(parting.noninferiority_p)}; with {level} confidence "
        + (
            f"at most {numbers.points(parting.largest_drop)} are lost."
            if parting.largest_drop > 0
            else f"at least {numbers.points(-parting.largest_drop)} are gained."
        ),
    ]
    if check.status is CheckStatus.UNDECIDABLE:
        needed = "no number of rows" if parting.rows_needed is None else f"at least {parting.rows_needed:,} rows"
        found.append(f"Undecidable at n = {check.n:,}: {needed} {'are needed' if parting.rows_needed else 'would do'}.")
    return found
