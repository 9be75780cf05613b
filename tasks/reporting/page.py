"""The report and its figures: HTML without a single outside request, from an outcome and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.contracts.values import Outcome
from tasks.reporting import numbers, sections, verdict
from tasks.reporting.evidence import Evidence, models

TEMPLATES = Path(__file__).parent / "templates"

FIGURES = ("waterfall", "curves", "speed")
"""Sections that are also pages of their own, for the artifact view of MLflow."""

DISTURBING = 0.1
"""Share of the cores' time that other processes may take before a page says so."""


@dataclass(frozen=True)
class Surroundings:
    """What the outcome itself does not know."""

    date: datetime
    versions: Mapping[str, str]
    run_url: str = ""
    """Address of the parent run in MLflow; empty where no server shows it."""


def _values(
    outcome: Outcome, recipe: Mapping[str, Any], evidence: Evidence, surroundings: Surroundings
) -> dict[str, Any]:
    rows, checks = models(outcome, evidence), outcome.verdict.checks
    return {
        "outcome": outcome,
        "metric": rows[0]["metric"] if rows else "quality",
        "surroundings": surroundings,
        "recipe": recipe,
        "recipe_yaml": yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
        "symbol": verdict.SYMBOLS[outcome.verdict.status],
        "headline": verdict.headline(checks),
        "tiles": verdict.tiles(checks, rows),
        "checks": verdict.checks(checks),
        "waterfall": sections.waterfall(rows, checks, evidence.comparisons),
        "quality": sections.quality(rows, evidence.comparisons),
        "tests": [sentence for check in checks for sentence in verdict.tests(check)],
        "recalls": sections.recalls(outcome.verdict.recalls),
        "seeds": sections.seeds(evidence.seeds),
        "regressions": evidence.regressions,
        "curves": [
            sections.curves(result, evidence.histories[result.stage])
            for result in outcome.stages
            if result.stage in evidence.histories
        ],
        "speed": sections.speed(rows),
        "speed_fields": sections.SPEED_FIELDS,
        "grid": sections.grid(evidence.validation),
        "generation": sections.generation(evidence.validation),
        "generation_fields": sections.GENERATION_FIELDS,
        "parity": sections.parity(evidence.validation),
        "validation": evidence.validation,
        "operators": sections.operators(evidence.operators),
        "data": sections.data(evidence.profile),
        "stages": sections.stages(outcome),
    }


def templates() -> Environment:
    """The templates, with everything escaped and nothing undefined."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": numbers.number, "percent": numbers.percent, "capital": numbers.capital}
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment


def fill(template: str, surroundings: Surroundings, **values: Any) -> str:
    """Returns the page that a template makes of values, as HTML that needs nothing else."""
    return templates().get_template(f"{template}.html.j2").render(surroundings=surroundings, **values)


def render(
    outcome: Outcome, recipe: Mapping[str, Any], evidence: Evidence, surroundings: Surroundings
) -> dict[str, str]:
    """Returns ``report.html`` and one ``figures/<section>.html`` for each of ``FIGURES`` that has something to show."""
    environment = templates()
    values = _values(outcome, recipe, evidence, surroundings)
    report = environment.get_template("report.html.j2")
    pages = {"report.html": report.render(values)}
    for name in FIGURES:
        if values[name]:
            section = Markup("").join(map(Markup, report.blocks[name](report.new_context(values))))
            pages[f"figures/{name}.html"] = environment.get_template("figure.html.j2").render(values, section=section)
    return pages
