"""xray: where a model's compute and memory go, in theory and measured, as tables, a JSON document and a page."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.command import console
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk
from tasks.ml import paths
from tasks.ml.models import locators
from tasks.ml.xray import architecture, cost_model
from tasks.reporting import numbers, page
from tasks.reporting import xray as sections

if TYPE_CHECKING:
    from tasks.ml.xray.xray import XRay

logger = logging.getLogger("featherweight")

LONGEST_COUNT = 7
"""Digits of a batch or a length."""
PACKAGES = ("featherweight", "torch", "transformers")


def counts(text: str, option: str) -> list[int]:
    """Reads ``1,8,32`` in any order.

    Raises:
        FeatherweightError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= LONGEST_COUNT and int(part) for part in parts):
        raise FeatherweightError(
            f"{option} {text[:80]!r}: write whole numbers above 0 with commas between them, as in 1,8,32; "
            f"they have at most {LONGEST_COUNT} digits"
        )
    return sorted({int(part) for part in parts})


def name_of(model: str) -> str:
    """A model's name for people and for files: a directory's own, and what a package or the hub calls it."""
    if not model.startswith("package:") and (path := paths.written(model, field="xray")).is_dir():
        return path.resolve().name
    return re.sub(r"[^\w.-]+", "-", model.removeprefix("package:").removesuffix("/model")).strip("-.")


def output(text: str, model: str) -> Path:
    """Where the page goes: as asked, or ``xray-NAME.html`` in the working directory.

    Raises:
        FeatherweightError: nothing can be written there.
    """
    return console.writable(text or f"xray-{name_of(model)}.html")


def examine(model: str, **options: Any) -> XRay:
    """Finds a model and measures it; what is going on is said in log lines.

    Args:
        options: passed on to ``tasks.ml.xray.xray.examine``.

    Raises:
        FeatherweightError: there is no such model, or it cannot be examined.
    """
    directory = locators.find(model, field="xray", weights=False)
    architecture.check_supported(locators.read_config(directory, field="xray"))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its own beginnings and ends
    from tasks.ml.xray import xray

    return xray.examine(directory, name=name_of(model), announce=lambda text: logger.info("xray: %s", text), **options)


def write(found: XRay, path: Path) -> Path:
    """Writes the page and returns where it is."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    surroundings = page.Surroundings(datetime.now().astimezone(), versions)
    disk.write_atomically(path, sections.render(found, surroundings))
    return path


def document(found: XRay) -> dict[str, Any]:
    """The JSON document: everything the page shows, in FLOPs, bytes and seconds."""
    cells = []
    for batch, length in sorted([*found.measured, *found.skipped]):
        measured = found.measured.get((batch, length))
        flops = found.flops(batch, length)
        cells.append({
            "batch": batch,
            "length": length,
            "flops": flops,
            "seconds": measured.seconds if measured else None,
            "fastest_seconds": measured.fastest if measured else None,
            "slowest_seconds": measured.slowest if measured else None,
            "passes": measured.passes if measured else 0,
            "outside_seconds": measured.component_seconds["outside"] if measured else None,
            "flops_per_s": flops / measured.seconds if measured else None,
            "share_of_peak": flops / measured.seconds / found.roof.flops_per_s if measured else None,
            "tokens_per_s": batch * length / measured.seconds if measured else None,
            "skipped": found.skipped.get((batch, length), ""),
            "components": found.components(batch, length),
            "memory": found.memory(batch, length),
            "saved_bytes": measured.saved_bytes if measured else None,
        })  # fmt: skip
    return {
        "model": found.model,
        "architecture": asdict(found.architecture),
        "parameters": cost_model.num_parameters(found.architecture),
        "training": found.training,
        "precision": found.precision,
        "machine": asdict(found.machine),
        "others_share": found.others_share,
        "ridge_flops_per_byte": found.roof.ridge,
        "crossover_length": cost_model.crossover_length(found.architecture),
        "kv_cache_bytes_per_token": cost_model.kv_cache_bytes_per_token(
            found.architecture, bytes_per_element=found.element
        ),
        "cells": cells,
        "writing": found.writing(),
    }


def print_tables(found: XRay) -> None:
    """Prints the components of the largest cell, the grid, and the memory of training."""
    table = sections.table(found, sections.main_cell(found))
    columns = ("title", "parameters", "flops", "bytes", "intensity", "least", "took", "rate", "share")
    header = (
        table["title"], "parameters", "FLOPs", "bytes", "FLOPs/byte", "least time", "measured", "GFLOP/s", "of roofline"
    )  # fmt: skip
    rows = [[row[name] for name in columns] for row in table["rows"]]
    if table["total"]:
        rows += [["Outside operators", *[""] * 5, table["outside"], "", ""]]
        rows += [["A pass", *[""] * 5, table["total"], "", ""]]
    console.print_table(header, rows, numbers_from=1)
    print()
    console.print_table(
        ("batch", "length", "FLOPs", "attention", "measured", "tokens/s", "GFLOP/s", "of peak", "training memory"),
        [_row(found, *cell) for cell in sorted([*found.measured, *found.skipped])],
        numbers_from=0,
    )
    for (batch, length), reason in found.skipped.items():
        print(f"{batch} × {length} was not measured: {reason}")
    if written := sections.writing(found):
        print()
        console.print_table(
            ("one token at a time", "after", "bytes", "at most/s", "measured/s", "of roofline"),
            [list(row.values()) for row in written],
            numbers_from=1,
        )
    crossover = sections.crossover(found.architecture)
    print(f"\n{sections.headline(found)}")
    print(f"{crossover['figure']} {crossover['unit']} {crossover['name']}: {crossover['detail']}.")
    if sections.disturbed(found):
        print(sections.disturbed(found))


def _row(found: XRay, batch: int, length: int) -> list[str]:
    flops = found.flops(batch, length)
    rows = found.components(batch, length)
    attention = next(row["flops"] for row in rows if row["component"] == "attention")
    held = numbers.scaled(sum(found.memory(batch, length).values()), "B")
    start = [str(batch), str(length), numbers.scaled(flops, "FLOP"), numbers.percent(attention / flops)]
    measured = found.measured.get((batch, length))
    if measured is None:
        return [*start, "–", "–", "–", "–", held]
    rate = flops / measured.seconds
    tokens = numbers.number(round(batch * length / measured.seconds))
    share = numbers.percent(rate / found.roof.flops_per_s, 0)
    return [*start, numbers.scaled(measured.seconds, "s"), tokens, numbers.number(rate / 1e9), share, held]
