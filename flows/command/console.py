"""What the command says: log lines and tables on standard error, JSON documents on standard output."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import ClassRecall, Outcome, Release
from tasks.engine import disk, redaction
from tasks.ml import paths

logger = logging.getLogger("featherweight")

is_answered = False
"""Whether standard output has its document, such as that of a server that answers until it is interrupted."""

STYLES = {
    "passed": "green",
    "ok": "green",
    "failed": "red",
    "broken": "red",
    "undecidable": "yellow",
    "warning": "yellow",
}


class _Lines(logging.Handler):
    """Writes log lines to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if not record.name.startswith(("prefect.flow_runs", "prefect.task_runs")):  # the command says how a run ended
            tqdm.write(self.format(record), file=sys.stderr)


class _Log(logging.FileHandler):
    """The log in the home; where that is full, lines are lost, and nothing is said of each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


def start_logging() -> None:
    """Sends our lines and everybody's warnings to standard error, and all of them with tracebacks to ``log_path``.

    Call it after Prefect was imported, because Prefect replaces the root logger's handlers.
    """
    disk.made("logs")
    lines = _Lines()
    lines.setFormatter(redaction.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    file = _Log(log_path(), encoding="utf-8")
    file.setFormatter(redaction.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().handlers[:] = [lines, file]
    logging.getLogger().setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


def keep(error: BaseException) -> None:
    """Appends an error with its traceback to the log."""
    disk.made("logs")
    with log_path().open("a", encoding="utf-8") as file:
        file.write(redaction.hide("".join(traceback.format_exception(error))))


def log_path() -> Path:
    """Where the command's own log is."""
    return disk.home() / "logs" / "featherweight.log"


def document(outcome: Outcome) -> dict[str, Any]:
    """The JSON document of one run: verdict, scorecards, what was cached, and where the results are."""
    verdict = outcome.verdict
    return {
        "recipe": outcome.recipe,
        "run_id": outcome.run_id,
        "flow_run_id": outcome.flow_run_id,
        "verdict": {
            "status": verdict.status.value,
            "passed": verdict.passed,
            "reason": verdict.reason,
            "checks": [check.model_dump(mode="json") for check in verdict.checks],
            "recalls": [recall.model_dump(mode="json") for recall in verdict.recalls],
        },
        "stages": [
            {
                "stage": stage.stage,
                "cached": stage.cached,
                "seconds": stage.seconds,
                "run_id": stage.run_id,
                "digest": stage.bundle.digest if stage.bundle else stage.splits.digest if stage.splits else "",
                "evidence": stage.evidence,
                "scorecard": stage.scorecard.model_dump(mode="json", exclude_none=True),
            }
            for stage in outcome.stages
        ],
        "release": outcome.release.model_dump(mode="json") if outcome.release else None,
        "bundle": _bundle_path(outcome.release),
        "report": report_path(outcome.run_id),
    }


def _bundle_path(release: Release | None) -> str | None:
    """Where the serving bundle of a release is on this machine, if it is."""
    from tasks.engine import store  # imports MLflow, which not every command needs

    try:
        return str(store.path(release.digest)) if release else None
    except store.CorruptObjectError:
        return None


def report_path(run_id: str) -> str | None:
    """Where the report of a run is on this machine, if it is."""
    path = disk.home() / "reports" / f"{run_id}.html"
    return str(path) if path.is_file() else None


def writable(text: str) -> Path:
    """The path that ``--output`` names.

    Raises:
        FeatherweightError: nothing can be written there.
    """
    path = paths.written(text, field="--output").absolute()
    if path.is_dir():
        raise FeatherweightError(f"--output {text}: this is a directory; name a file in it")
    if path.exists() and not path.is_file():  # which is swapped for the page, even if it is /dev/null
        raise FeatherweightError(f"--output {text}: this is no file that a page could take the place of; name another")
    if not path.parent.is_dir():
        raise FeatherweightError(f"--output {text}: there is no directory {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FeatherweightError(
            f"--output {text}: nothing can be written to {path.parent} ({error.strerror}); name another place"
        ) from None
    return path


def print_json(value: Any) -> None:
    """Prints the one JSON document of a process on standard output."""
    global is_answered
    is_answered = True
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def print_outcome(outcome: Outcome) -> None:
    """Prints a run: a row per stage, a row per check, the verdict, and where the results are."""
    facts = document(outcome)
    rows = [
        (
            stage.stage,
            _number(stage.scorecard.quality, ".4f"),
            _number(stage.scorecard.num_parameters and stage.scorecard.num_parameters / 1e6, ".2f"),
            _number(stage.scorecard.size_mb, ".2f"),
            _number(stage.scorecard.latency_p50_ms, ".2f"),
            "Cached" if stage.cached else f"{stage.seconds:.1f}",
        )
        for stage in outcome.stages
    ]
    metric = next(
        (stage.scorecard.metric for stage in outcome.stages if stage.scorecard.quality is not None), "quality"
    )
    print_table(("stage", metric, "parameters (M)", "size (MB)", "p50 (ms)", "seconds"), rows, numbers_from=1)
    checks = [
        (
            check.name,
            f"{check.measured:.4g}",
            f"{check.low:.4g} … {check.high:.4g}",
            f"{'≤' if check.direction == 'at_most' else '≥'} {check.limit:.4g}",
            str(check.n),
            check.status.value,
        )
        for check in outcome.verdict.checks
    ]
    print_table(("check", "measured", "interval", "limit", "n", "status"), checks, numbers_from=1)
    _print_recalls(outcome.verdict.recalls)
    _print(f"[{STYLES[outcome.verdict.status]}]{_escape(outcome.verdict.reason)}[/]")
    for name in ("report", "bundle"):
        if facts[name]:
            _print(f"{name}: {_escape(facts[name])}")
    if outcome.release:
        _print(f"registered: {_escape(outcome.release.name)} version {outcome.release.version}")


CLASSES_SHOWN = 10


def _print_recalls(recalls: Sequence[ClassRecall]) -> None:
    """Prints how many rows of each class teacher and shipped model find; of many classes those that fell most."""
    if not recalls:
        return
    shown = sorted(recalls, key=lambda one: one.change)[:CLASSES_SHOWN] if len(recalls) > CLASSES_SHOWN else recalls
    rows = [
        (
            " ".join(one.label.split())[:40],
            str(one.n),
            f"{one.teacher / one.n:.4f}",
            f"{one.shipped / one.n:.4f}",
            f"{one.change_low:.4f} … {one.change_high:.4f}",
        )
        for one in shown
    ]
    print_table(("class", "n", "recall, teacher", "recall, shipped", "interval of the change"), rows, numbers_from=1)
    if len(shown) < len(recalls):
        _print(f"… and {len(recalls) - len(shown)} classes that fell less")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> None:
    """Prints a table; columns from ``numbers_from`` on are right-aligned, and words of judgement are coloured."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for index, name in enumerate(header):
        numeric = numbers_from is not None and index >= numbers_from
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"[{STYLES[cell]}]{cell}[/]" if cell in STYLES else _escape(cell) for cell in row))
    _print(table)


def _escape(text: str) -> str:
    """Text that a terminal shows and does not obey: neither rich's markup nor control characters."""
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text))


def _print(*values: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, soft_wrap=True, highlight=False).print(*values)
