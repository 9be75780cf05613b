"""What to learn from a source that is looked at for the first time: which columns, which problem, how many tokens.

What is proposed has gone through the same reading, checks and division as in a run, so that a run takes it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import conversations, datasets, legibility, sources, splitting, tables
from tasks.ml.data.column_kinds import LABEL_NAMES, TEXT_NAMES, Column, ColumnKind, describe, percent, shares
from tasks.ml.data.label_kinds import is_number
from tasks.ml.data.legibility import Reading
from tasks.ml.data.tables import SHOWN, Table
from tasks.ml.data.targets import Targets
from tasks.ml.models import locators, tokenization
from tasks.ml.problem import PROBLEMS, problem_of
from tasks.ml.quoting import quoted

ROWS = 20_000
"""Rows that are looked at."""
FRACTIONS = {"test": 0.2, "selection": 0.08, "calibration": 0.02}
"""As a recipe divides rows that says nothing of it."""
NEAR = 2 / 3
"""How long a column of texts is beside the longest, from which on nobody knows which of them is meant."""
FEW_TEST_ROWS = 300
LEARNED = (ColumnKind.CLASSES, ColumnKind.SCORES)


@dataclass(frozen=True)
class Choice:
    """A column, and why it was taken."""

    column: Column
    why: str


@dataclass(frozen=True)
class Proposal:
    """What was found and what is proposed.

    Attributes:
        total: rows of the source's train split.
        read: how many of them were looked at.
        labels: what is learned, in words.
        balance: rows by class, or by range of scores.
        rarest: rows of the class that has fewest; 0 of scores.
        max_length: tokens after which texts are to be cut.
        repeated: rows whose text is there before, among those that were looked at.
        notes: a sentence for each thing that a person should know.
    """

    total: int
    read: int
    columns: Sequence[Column]
    text: Choice
    label: Choice
    problem: str
    labels: str
    balance: Mapping[str, int]
    rarest: int
    reading: Reading
    max_length: int
    repeated: int
    notes: Sequence[str]


def propose(
    source: str, *, base_model: str, cache: Path, text: str = "", label: str = "", problem: str = ""
) -> Proposal:
    """Looks at a source and proposes how to learn from it.

    Args:
        text, label, problem: what is known already; "" is found out.

    Raises:
        FeatherweightError: a run could not learn from it, or what is meant cannot be told.
    """
    problems = [problem] if problem else [name for name in PROBLEMS if problem_of(name).LEARNS is not None]
    if problem_of(problems[0]).LEARNS is None:
        raise FeatherweightError(
            f"problem: {problem} learns from texts alone, and what is looked for here is a label; write a recipe that "
            "names data.source, data.text and base_model, and run it with featherweight compress"
        )
    seen, total = sources.look(source, cache=cache, most=ROWS, wanted=[name for name in (text, label) if name])
    for name, option in ((text, "--text"), (label, "--label")):
        if name:
            tables.require_columns(seen.origin, seen.values, [name], fields=[option])
    if not seen.numbers:
        raise FeatherweightError(f"{seen.origin}: there are no rows; at least a few per label are needed")
    columns = [describe(name, values) for name, values in seen.values.items()]
    text_choice = _text(columns, seen, text, but=label)
    label_choice = _label(columns, seen, label, text=text_choice.column)
    text, label = text_choice.column.name, label_choice.column.name
    is_whole = total == len(seen.numbers)
    found = (
        sources.read(source, text=text, label=label, cache=cache)
        if is_whole
        else {"train": tables.check(seen, text=text, label=label)}
    )
    base = locators.locate(base_model)
    tokenizer = tokenization.load(base)
    found = conversations.rendered(found, tokenizer, completes=False)
    name, targets = _learned(found, problems, label_choice.column.kind)
    train = targets.tables["train"]
    reading = legibility.read(train.texts, tokenizer)
    max_length = reading.max_length(locators.positions(base))
    balance = Counter(targets.stratum(label) for label in train.labels)
    units = targets.measure(train.labels)
    return Proposal(
        total=total,
        read=len(seen.numbers),
        columns=columns,
        text=text_choice,
        label=label_choice,
        problem=name,
        labels=_in_words(units, train, balance),
        balance={kind: balance[kind] for kind in targets.strata},
        rarest=0 if units else min(balance.values()),
        reading=reading,
        max_length=max_length,
        repeated=len(train.texts) - len(set(splitting.keys(train.texts))),
        notes=[
            *_own_splits(found),
            *_passed_over(columns, text_choice.column, label_choice.column),
            *_cut(reading, max_length),
            *reading.objections(),
            *(_divided(targets, base, max_length) if is_whole else _sampled(len(seen.numbers), total)),
            *_otherwise(found, [other for other in problems if other != name]),
        ],
    )


# Which columns ----------------------------------------------------------------------------------------------------


def _text(columns: Sequence[Column], seen: tables.Columns, given: str, *, but: str) -> Choice:
    if given:
        return Choice(_called(given, columns), "as asked for")
    texts = [column for column in columns if column.kind is ColumnKind.TEXT and column.name != but]
    if not texts:
        raise _no_text([column for column in columns if column.name != but], seen)
    if named := [column for column in texts if column.name.casefold() == "text"]:
        return Choice(named[0], "by its name")
    ranked = sorted(texts, key=_prominence, reverse=True)
    near = [column for column in ranked if _prominence(column) > NEAR * _prominence(ranked[0])]
    if len(near) > 1:
        raise FeatherweightError(
            f"{seen.origin}: {_listed(near)} could each be the text; name one with --text, or, where the label tells "
            "of both, write a column that joins them, since a model reads one"
        )
    return Choice(ranked[0], "the only column of sentences" if len(texts) == 1 else "the longest of the texts")


def _prominence(column: Column) -> float:
    """Words, twice if the name says that it is read."""
    return column.length * (2 if column.is_called(TEXT_NAMES) else 1)


def _no_text(columns: Sequence[Column], seen: tables.Columns) -> FeatherweightError:
    lists = [column for column in columns if column.kind is ColumnKind.LISTS]
    sizes = {tuple(map(len, filter(None, seen.values[column.name]))) for column in lists}
    if len(lists) > 1 and len(sizes) == 1:
        return FeatherweightError(
            f"{seen.origin}: {_listed(lists)} hold lists of the same lengths, like tokens with a tag for each, which "
            f"no problem learns yet: {' and '.join(PROBLEMS)} learn one label for a text that is written in one piece"
        )
    return FeatherweightError(
        f"{seen.origin}: no column looks like texts ({_described(columns)}); name the one to read with --text"
    )


def _label(columns: Sequence[Column], seen: tables.Columns, given: str, *, text: Column) -> Choice:
    if given:
        return Choice(_called(given, columns), "as asked for")
    others = [column for column in columns if column is not text]
    likely = [
        column
        for column in others
        if column.kind in (*LEARNED, ColumnKind.CONSTANT)
        or (column.is_called(LABEL_NAMES) and column.kind not in (ColumnKind.TEXT, ColumnKind.DATES))
    ]
    if not likely:
        reason = f"no other column could be its label ({_described(others)})" if others else "it is the only column"
        raise FeatherweightError(
            f"{seen.origin}: {quoted(text.name, SHOWN)} is text, and {reason}; to learn something of each text, add a "
            "column with a class or a score, or name one with --label"
        )
    best = max(map(_claim, likely))
    first = _in_names([column for column in likely if _claim(column) == best], seen)
    if len(first) > 1:
        raise FeatherweightError(f"{seen.origin}: {_described(first)} could each be the label; name one with --label")
    return Choice(first[0], "by its name" if any(best[:2]) else f"the only column of {first[0].kind}")


def _claim(column: Column) -> tuple[bool, bool, bool, bool]:
    """What speaks for a column as the label, the strongest first."""
    return (
        column.name.casefold() == "label",
        column.is_called(LABEL_NAMES),
        column.kind in LEARNED and not column.missing,
        column.kind is ColumnKind.CLASSES,
    )


def _in_names(columns: Sequence[Column], seen: tables.Columns) -> list[Column]:
    """Columns without those that say in numbers or again what another one says."""
    written = {column.name: list(map(str, seen.values[column.name])) for column in columns}
    kept: list[Column] = []
    for column in sorted(columns, key=lambda one: all(map(is_number, written[one.name]))):
        if not any(_says_the_same(written[column.name], written[other.name]) for other in kept):
            kept.append(column)
    return kept


def _says_the_same(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def _called(name: str, columns: Iterable[Column]) -> Column:
    return next(column for column in columns if column.name == name)


def _listed(columns: Iterable[Column]) -> str:
    return " and ".join(quoted(column.name, SHOWN) for column in columns)


def _described(columns: Iterable[Column]) -> str:
    return "; ".join(f"{quoted(column.name, SHOWN)}: {column.what}" for column in columns)


# What is learned --------------------------------------------------------------------------------------------------


def _learned(found: Mapping[str, Table], problems: Sequence[str], kind: ColumnKind) -> tuple[str, Targets]:
    """The first problem that takes the labels, beginning with those that are meant for such a column."""
    refusals = []
    for name in sorted(problems, key=lambda one: problem_of(one).LEARNS is not kind):
        try:
            return name, problem_of(name).targets(found)
        except FeatherweightError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _in_words(units: Mapping[str, float], train: Table, balance: Counter[str]) -> str:
    if not units:
        return shares(balance, "labels")
    values = [float(label) for label in train.labels]
    return f"scores from {min(values):.6g} to {max(values):.6g}, {units['mean']:.3g} on average"


# What a person should know ----------------------------------------------------------------------------------------


def _passed_over(columns: Iterable[Column], text: Column, label: Column) -> Iterator[str]:
    others = [column for column in columns if column.kind is ColumnKind.TEXT and column not in (text, label)]
    if others:
        yield (
            f"{_listed(others)} {'is' if len(others) == 1 else 'are'} not read, though there are sentences, too; where "
            "the label tells of several columns, write one that joins them"
        )


def _cut(reading: Reading, max_length: int) -> Iterator[str]:
    if reading.cut(max_length) > 1 - legibility.WHOLE:
        yield (
            f"{percent(reading.cut(max_length))} of the texts have more tokens than the base model reads at once, "
            f"{max_length}; of these the rest is cut"
        )


def _sampled(read: int, total: int) -> Iterator[str]:
    yield f"{read:,} of {total:,} rows were looked at, drawn at random; the others may hold more classes, or mistakes"


def _divided(targets: Targets, base: Path, max_length: int) -> Iterator[str]:
    """Divides the rows as a run would, and says what comes of it."""
    read = functools.partial(
        datasets.as_read, tokenizer=tokenization.load(base, max_length=max_length), max_length=max_length
    )
    fractions: dict[str, Any] = FRACTIONS
    division = splitting.divide(targets, **fractions, read=read)
    if conflicts := division.dropped["conflicting_labels"]:
        yield f"{conflicts} rows are left out, since their texts are there with several labels"
    yield from division.warnings
    rows = len(division.splits["test"])
    if rows < FEW_TEST_ROWS:
        yield (
            f"{rows} rows will judge the model, of which one is {percent(1 / rows)}: smaller losses are not seen, and "
            "those of a few rows may be chance; more rows make the verdict surer"
        )


def _own_splits(found: Mapping[str, Table]) -> Iterator[str]:
    if len(found) > 1:
        splits = (f"{split} {len(table.texts):,} rows of {table.origin}" for split, table in found.items())
        yield f"the source has splits of its own: {', '.join(splits)}"


def _otherwise(found: Mapping[str, Table], others: Iterable[str]) -> Iterator[str]:
    for name in others if len(set(found["train"].labels)) > 2 else ():
        try:
            problem_of(name).targets(found)
        except FeatherweightError:
            continue
        yield f"these labels could also be learned by --problem {name}"
