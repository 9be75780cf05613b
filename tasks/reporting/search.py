"""A search as a page: the Pareto front of what was tried, the finalists, and what was given up and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tasks.contracts.values import CheckStatus
from tasks.reporting import charts, numbers, page
from tasks.reporting.markdown import table, text
from tasks.reporting.trials import FIELDS, Finalist, Limits, Minimize, Search, State, Trial, best, front, standing

TITLES = {Minimize.LATENCY: "p50 of one sentence", Minimize.SIZE: "size of the weights"}


def recipe_line(trial: Trial) -> str:
    """What a trial changes, in one line."""
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in trial.changes.items())


def _cost(value: float | None, minimize: Minimize) -> str:
    return numbers.known(value, lambda cost: numbers.unit(cost, FIELDS[minimize][1]))


def _lost(drop: float) -> str:
    return numbers.points(drop, signed=True)


def _link(trial: Trial, search: Search, url: str) -> str:
    """The address of a trial's run, beside that of the search; empty where no server shows it."""
    return url.replace(search.run_id, trial.run_id) if url else ""


def progress(trials: Sequence[Trial], limits: Limits, minimize: Minimize) -> str:
    """Where a search stands, in one line."""
    counts = Counter(trial.state for trial in trials)
    said = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    first = best(trials, limits, minimize)
    if first is None:
        return f"{said}; none was measured yet"
    drop = first.drop(limits)
    assert drop is not None
    within = "" if first.keeps_to(limits) else ", which is beyond the limits"
    cost = _cost(first.cost(minimize), minimize)
    return f"{said}; best is trial {first.number}: {cost}, {_lost(drop)} lost{within}"


def headline(search: Search) -> str:
    """What the search found, in one sentence."""
    winner = search.winner
    if winner is None:
        if not search.complete:
            return "No variation was measured to the end."
        if not search.finalists:
            return f"None of {len(search.complete)} variations measured keeps to the limits on the selection split."
        return f"None of {len(search.finalists)} finalists passed on the test split."
    drop = next(check for check in winner.outcome.verdict.checks if check.name == "quality_drop")
    cost, before = winner.trial.cost(search.minimize), getattr(search.baseline, FIELDS[search.minimize][0])
    assert cost is not None
    smaller = f"{numbers.times(before / cost)} {'faster' if search.minimize is Minimize.LATENCY else 'smaller'}"
    lost = f"{_lost(drop.measured)} of quality lost on {drop.n:,} test rows"
    return (
        f"Trial {winner.trial.number} is the {'fastest' if search.minimize is Minimize.LATENCY else 'smallest'} that "
        f"passed: {_cost(cost, search.minimize)}, {smaller} than its teacher, {lost}."
    )


def remarks(search: Search) -> list[str]:
    """What a reader must know of the comparison."""
    k, found = len(search.finalists), []
    if search.complete:
        found.append(
            f"{len(search.complete)} variations were compared on {search.limits.rows:,} selection rows. The best of "
            "many looks better there than it is; only what the test split says of the finalists is free of that."
        )
    if k > 1:
        levels = ", ".join(sorted({numbers.percent(one.confidence) for one in search.finalists}))
        found.append(
            f"{k} finalists were shown the test split. Holm's procedure allows for their number, so that the chance of "
            f"any false pass stays what it is for one at {numbers.percent(search.confidence)}: their intervals are at "
            f"{levels}."
        )
    if search.limits.rows < 200:
        found.append(f"{search.limits.rows} selection rows tell hardly any variations apart.")
    return found


HEADER = ("", "verdict", "cost", "quality lost on selection", "on test", "p", "adjusted")


def cells(finalist: Finalist, search: Search) -> Iterator[str]:
    """What a table shows of a finalist."""
    drop = next(check for check in finalist.outcome.verdict.checks if check.name == "quality_drop")
    seen = finalist.trial.drop(search.limits)
    assert seen is not None
    yield f"trial {finalist.trial.number}"
    yield finalist.outcome.verdict.status.value
    yield _cost(finalist.trial.cost(search.minimize), search.minimize)
    yield _lost(seen)
    yield f"{_lost(drop.measured)} ({numbers.between(drop.low, drop.high, _lost)})"
    yield f"{finalist.p_value:.2g}"
    yield f"{finalist.adjusted_p_value:.2g}"


def given_up(search: Search) -> dict[str, list[int]]:
    """Numbers of the trials that came to no end, by where that was."""
    found: dict[str, list[int]] = {}
    for trial in search.trials:
        if trial.state is State.GIVEN_UP:
            where = f"after {trial.stages[-1].stage}" if trial.stages else "before anything was trained, by their size"
            found.setdefault(where, []).append(trial.number)
        elif trial.state is State.FAILED:
            found.setdefault("with an error", []).append(trial.number)
    return found


def document(search: Search) -> dict[str, Any]:
    """Everything as JSON has it, in seconds, milliseconds, 10^6 bytes and fractions."""
    winner = search.winner
    return {
        **search.model_dump(mode="json"),
        "passed": winner is not None,
        "winner": winner.trial.number if winner else None,
        "front": [trial.number for trial in front(search)],
    }


def metrics(search: Search) -> dict[str, float]:
    """Numbers to compare searches by."""
    found: dict[str, float] = {
        "trials": len(search.trials),
        "trials_complete": len(search.complete),
        "front": len(front(search)),
    }
    if first := best(search.trials, search.limits, search.minimize):
        found |= {f"best/{name}": value for name, value in first.metrics(search.limits).items()}
    if winner := search.winner:
        found |= {f"winner/{check.name}": check.measured for check in winner.outcome.verdict.checks}
    return found


def markdown(search: Search) -> str:
    """The tables for a run's page."""
    lines = [text(headline(search)), "", *map(text, remarks(search))]
    if search.finalists:
        lines += ["", table(HEADER, [list(cells(one, search)) for one in search.finalists])]
    lines += ["", *(f"- {len(numbers_)} given up {text(where)}" for where, numbers_ in given_up(search).items())]
    return "\n".join(lines)


def _tip(trial: Trial, search: Search) -> str:
    card, drop = trial.card, trial.drop(search.limits)
    assert card is not None
    assert drop is not None
    measured = ", ".join(_cost(trial.cost(one), one) for one in Minimize)
    return f"Trial {trial.number}: {recipe_line(trial)}. {measured}, {_lost(drop)} lost"


def _scatter(search: Search, cost: Minimize, url: str) -> Markup:
    """Quality lost over one cost, a mark per trial; the front is joined up where the cost is what is made small."""
    found = {one.trial.number: one for one in search.finalists}
    winner, on_front = search.winner, {trial.number for trial in front(search)}
    marks = []
    for trial in search.complete:
        drop, price = trial.objectives(search.limits, cost)
        kind = "winner" if winner and trial.number == winner.trial.number else ""
        kind = kind or ("finalist" if trial.number in found else "front" if trial.number in on_front else "")
        marks.append(charts.Mark(price, 100 * drop, _tip(trial, search), kind, _link(trial, search, url)))
    return charts.scatter(
        marks,
        label=f"Quality lost over {TITLES[cost]}",
        x_name=FIELDS[cost][1],
        y_name="points lost",
        level=100 * search.limits.max_drop,
        joined=[(t.cost(cost) or 0, 100 * (t.drop(search.limits) or 0)) for t in front(search)]
        if cost is search.minimize
        else (),
        size=(720, 360) if cost is search.minimize else (720, 300),
    )


def _course(search: Search) -> Markup | None:
    """The cost of the best until then, by trial."""
    points: list[tuple[float, float]] = []
    for index in range(1, len(search.trials) + 1):
        if first := standing(search.trials[:index], search.limits, search.minimize):
            points.append((search.trials[index - 1].number, first[0].cost(search.minimize) or 0))
    if not points:
        return None
    return charts.lines(
        {"best": points}, label="Best so far", form=lambda value: _cost(value, search.minimize), x_name="trial",
        size=(720, 180),
    )  # fmt: skip


def rows(search: Search, url: str) -> list[dict[str, Any]]:
    """A row per trial."""
    return [
        {
            "number": trial.number,
            "recipe": recipe_line(trial),
            "state": trial.state.value,
            "drop": numbers.known(trial.drop(search.limits), _lost),
            **{one.value: _cost(trial.cost(one), one) for one in Minimize},
            "reason": trial.reason,
            "seconds": numbers.duration(trial.seconds),
            "cached": sum(stage.cached for stage in trial.stages),
            "stages": len(trial.stages),
            "url": _link(trial, search, url),
        }
        for trial in search.trials
    ]


def finalists(search: Search, url: str) -> list[dict[str, Any]]:
    """A row per finalist, with what each check came to."""
    winner = search.winner
    return [
        {
            "number": one.trial.number,
            "recipe": recipe_line(one.trial),
            "status": one.outcome.verdict.status.value,
            "reason": one.outcome.verdict.reason,
            "final": winner is not None and one.trial.number == winner.trial.number,
            "cells": list(cells(one, search))[2:],
            "url": _link(one.trial, search, url),
        }
        for one in search.finalists
    ]


def render(search: Search, surroundings: page.Surroundings) -> str:
    """Returns the page as HTML that needs nothing else."""
    url = surroundings.run_url
    drawn = sorted(Minimize, key=lambda one: one is not search.minimize) if search.complete else []
    return page.fill(
        "search",
        surroundings,
        search=search,
        headline=headline(search),
        remarks=remarks(search),
        status=CheckStatus.PASSED if search.winner else CheckStatus.FAILED,
        charts=[(TITLES[one], _scatter(search, one, url)) for one in drawn],
        course=_course(search),
        minimize=TITLES[search.minimize],
        header=HEADER[2:],
        finalists=finalists(search, url),
        given_up=given_up(search),
        trials=rows(search, url),
        limits=limits(search),
        grid=math.prod(len(values) for values in search.space.values()),
    )


def limits(search: Search) -> Mapping[str, str]:
    """What a model had to keep to, as people read it."""
    found = {"quality lost": f"at most {numbers.points(search.limits.max_drop)}"}
    for one, limit in ((Minimize.SIZE, search.limits.max_mb), (Minimize.LATENCY, search.limits.max_ms)):
        if math.isfinite(limit):
            found[TITLES[one]] = f"at most {_cost(limit, one)}"
    return found
