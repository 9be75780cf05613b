"""The prepared dataset on disk: one Arrow file per split, encoded once with the base model's tokenizer.

Layout: ``<split>.arrow`` with columns text (string), input_ids (list of int32), document (int32: rows of one text have
the same) and target (as the problem has it); where there are rows of which not all counts, also counted (list of int8:
1 for each token that does), spans (pairs of int32: characters of the text that do, from and to) and messages (string:
the conversation in JSON), null of other rows;
``dataset.json`` with what encoding and decoding need; ``profile.json`` for people; the tokenizer in ``tokenizer/``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.contracts.base import FeatherweightError
from tasks.ml import tokens
from tasks.ml.data import conversations, held_out
from tasks.ml.data.conversations import Conversation, Span
from tasks.ml.data.splitting import SPLITS, Division, Row
from tasks.ml.data.targets import Targets
from tasks.ml.models import tokenization

SCHEMA = pa.schema([("text", pa.string()), ("input_ids", pa.list_(pa.int32())), ("document", pa.int32())])
PARTLY = (
    pa.field("counted", pa.list_(pa.int8())),
    pa.field("spans", pa.list_(pa.list_(pa.int32(), 2))),
    pa.field("messages", pa.string()),
)
INFO = "dataset.json"
PROFILE = "profile.json"
TOKENIZER = "tokenizer"
HISTOGRAM_BINS = 16


@dataclass(frozen=True)
class Split:
    """Rows of one split, in stored order.

    Attributes:
        input_ids: token ids with special tokens, ``tokens.Partly`` where some do not count; at most ``max_length`` a
            row, but where a tokenizer with fewer tokens reads the parts of a text.
        targets: (N,), such as class indices; the problem's ``NO_TARGET`` where there is no label.
        documents: (N,) which text of the source each row is, or is a part of.
    """

    texts: list[str]
    input_ids: list[list[int]]
    targets: np.ndarray
    documents: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> Split:
        """The first rows."""
        return Split(self.texts[:count], self.input_ids[:count], self.targets[:count], self.documents[:count])


@dataclass(frozen=True)
class DatasetInfo:
    """What holds for every split: names of a model's outputs, tokens after which a text is cut, whose ids these are,
    numbers that lead from targets back to labels, and whether what is cut off a text is a row of its own."""

    labels: list[str]
    max_length: int
    tokenizer_digest: str
    units: Mapping[str, float] = field(default_factory=dict)
    in_parts: bool = False


class _Stored(NamedTuple):
    """A row as it is stored.

    Attributes:
        document: the number of its text.
        length: tokens that it would have if it was not cut, with the special ones.
        spans: characters that count; ``None`` where all do.
        messages: the whole conversation, in JSON, where it is one.
    """

    row: Row
    input_ids: list[int]
    document: int
    length: int
    spans: Sequence[Span] | None = None
    messages: str | None = None


def as_read(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[bytes]:
    """Digest of the token ids of each text: equal for texts that a model cannot tell apart."""
    ids = tokenization.encode(texts, tokenizer, max_length=max_length)
    return [hashlib.sha256(np.asarray(row, dtype=np.int32).tobytes()).digest() for row in ids]


def write(directory: Path, division: Division, tokenizer: Any, *, max_length: int) -> dict[str, Any]:
    """Writes a dataset into an existing directory and returns its profile.

    Raises:
        FeatherweightError: of none of a split's conversations a row has as much as the beginning of an answer.
    """
    schema = SCHEMA.append(pa.field("target", pa.from_numpy_dtype(division.targets.dtype)))
    lengths: dict[str, np.ndarray] = {}
    kept: dict[str, list[Row]] = {}
    unanswered = 0
    units = dict(division.targets.measure([row.label for row in division.splits["train"]]))
    in_parts = division.targets.of_text is not None
    for name, rows in division.splits.items():
        stored = list(_stored(rows, tokenizer, division.targets, max_length=max_length))
        learned = [one for one in stored if one.spans is None or any(tokens.counted(one.input_ids)[1:])]
        if stored and not learned and name in SPLITS:
            raise FeatherweightError(
                f"data.max_length: {max_length} tokens end before the first answer of every conversation of the {name} "
                "split; raise it"
            )
        unanswered += len(stored) - len(learned)
        columns: dict[str, Any] = {
            "text": [one.row.text for one in learned],
            "input_ids": [one.input_ids for one in learned],
            "document": [one.document for one in learned],
            "target": division.targets.array([one.row.label for one in learned], units),
        }
        if any(one.spans is not None for one in learned):
            columns["counted"] = [None if one.spans is None else tokens.counted(one.input_ids) for one in learned]
            columns["spans"] = [one.spans for one in learned]
            columns["messages"] = [one.messages for one in learned]
        own = pa.schema([*schema, *(field for field in PARTLY if field.name in columns)])
        with pa.OSFile(str(directory / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, own) as writer:
            writer.write_table(pa.table(columns, schema=own))
        lengths[name] = np.array([one.length for one in learned], dtype=np.int64)
        kept[name] = [one.row for one in learned]
    info = DatasetInfo(list(division.targets.names), max_length, tokenization.digest(tokenizer), units, in_parts)
    profile = _profile(_without_answers(replace(division, splits=kept), unanswered, max_length), lengths, max_length)
    (directory / INFO).write_text(json.dumps(asdict(info), indent=1, ensure_ascii=False), encoding="utf-8")
    (directory / PROFILE).write_text(json.dumps(profile, indent=1, ensure_ascii=False), encoding="utf-8")
    (directory / TOKENIZER).mkdir()
    tokenization.save(tokenizer, directory / TOKENIZER)
    return profile


def _without_answers(division: Division, count: int, max_length: int) -> Division:
    """Says of conversations that were dropped, if any were."""
    if not count:
        return division
    warning = (
        f"{count} conversations are left out, since their first answer begins after data.max_length, {max_length} "
        "tokens; raise it to keep them"
    )
    dropped = {**division.dropped, "without_answer": count}
    return replace(division, dropped=dropped, warnings=[*division.warnings, warning])


def _stored(rows: Sequence[Row], tokenizer: Any, targets: Targets, *, max_length: int) -> Iterator[_Stored]:
    """Rows as they are stored: conversations as they were rendered, and cut; other texts cut, or in parts."""
    talks = [row.text.as_read() for row in rows if isinstance(row.text, Conversation)]
    answered = conversations.encoded(talks, tokenizer, max_length=max_length)
    others = [row.text for row in rows if not isinstance(row.text, Conversation)]
    encoded = iter(tokenization.encodings(others, tokenizer, max_length=max_length))
    special = tokenizer.num_special_tokens_to_add()
    for document, row in enumerate(rows):
        if isinstance(row.text, Conversation):
            one = next(answered)
            label = str(one.rendered.num_bytes) if row.label else ""
            text = row._replace(text=one.rendered.text, label=label)
            yield _Stored(text, one.ids, document, one.length, one.rendered.counted, row.text)
            continue
        whole = next(encoded)
        if targets.of_text is None or not whole.overflowing:
            length = len(whole.ids) + sum(len(part.ids) - special for part in whole.overflowing)
            yield _Stored(row, whole.ids, document, length)
            continue
        for part, ids in _parts(row.text, whole):
            label = targets.of_text(part) if row.label else ""
            yield _Stored(row._replace(text=part, label=label), ids, document, len(ids))


def _parts(text: str, whole: Any) -> Iterator[tuple[str, list[int]]]:
    """Parts of a text that is longer than a row, with their token ids: none of it is cut.

    A part ends where the next begins: tokens need not cover the space between words, and two of them may be of one
    character.
    """
    parts = sorted((whole, *whole.overflowing), key=_start)  # who cuts on the left has the last part first
    borders = [0, *itertools.accumulate(map(_start, parts[1:]), max), len(text)]
    for part, (start, end) in zip(parts, itertools.pairwise(borders), strict=True):
        yield text[start:end], part.ids


def _start(part: Any) -> int:
    """Where in its text the first token of a part is that is of any of it."""
    return int(min((start for start, end in part.offsets if end > start), default=0))


def _profile(division: Division, lengths: Mapping[str, np.ndarray], max_length: int) -> dict[str, Any]:
    """Rows, class balance and token lengths per split, how many rows were dropped and why, and what is to be known."""
    edges = np.unique(np.linspace(0, max_length, HISTOGRAM_BINS + 1).round().astype(int))

    def describe(rows: list[Row], whole: np.ndarray) -> dict[str, Any]:
        labels = Counter(division.targets.stratum(row.label) for row in rows if row.label)
        tokens = np.minimum(whole, max_length)
        return {
            "rows": len(rows),
            "labels": {label: labels[label] for label in division.targets.strata} if labels else {},
            "tokens_mean": round(float(tokens.mean()), 3) if len(rows) else 0.0,
            "rows_cut": int((whole > max_length).sum()),
            # Bin i holds lengths in (edges[i], edges[i + 1]]: no row has 0 tokens, and a cut one has max_length.
            "token_histogram": np.histogram(tokens - 0.5, edges)[0].tolist(),
        }

    labelled = np.concatenate([lengths[name] for name in SPLITS])
    return {
        "splits": {name: describe(rows, lengths[name]) for name, rows in division.splits.items()},
        "tokens_at_95_percent": int(np.quantile(labelled, 0.95, method="inverted_cdf")) if len(labelled) else 0,
        "token_histogram_edges": edges.tolist(),
        "dropped": division.dropped,
        "warnings": division.warnings,
    }


def info(directory: Path) -> DatasetInfo:
    """Reads what holds for every split."""
    return DatasetInfo(**json.loads((directory / INFO).read_text(encoding="utf-8")))


@contextmanager
def _opened(directory: Path, split: str) -> Iterator[pa.Table]:
    """The one door to the rows of a split."""
    held_out.require(split)
    with pa.memory_map(str(directory / f"{split}.arrow")) as source:
        yield pa.ipc.open_file(source).read_all()


def read(directory: Path, split: str, tokenizer: Any = None) -> Split:
    """Reads one split; with a tokenizer other than the one it was encoded with, encodes its texts again.

    Parts of texts stay whole then, however many tokens they become: nothing of a text gets lost, or is told twice.

    Args:
        split: ``train``, ``calibration``, ``selection``, ``test`` or ``unlabeled``.
        tokenizer: whose ids are wanted, such as those of a pruned vocabulary; as stored if ``None``.

    Raises:
        HeldOutError: it is the test split, and the stage that asks may not open it.
    """
    with _opened(directory, split) as table:
        texts, ids = table["text"].to_pylist(), table["input_ids"].to_pylist()
        counted, spans = (
            table[name].to_pylist() if name in table.column_names else [None] * len(texts)
            for name in ("counted", "spans")
        )
        # A copy: the array must outlive the mapping.
        targets, documents = (table[name].to_numpy().copy() for name in ("target", "document"))
    about = info(directory)
    if tokenizer is not None and tokenization.digest(tokenizer) != about.tokenizer_digest:
        input_ids = _again(texts, spans, tokenizer, max_length=0 if about.in_parts else about.max_length)
    else:
        input_ids = [row if own is None else tokens.row(row, own) for row, own in zip(ids, counted, strict=True)]
    return Split(texts, input_ids, targets, documents)


def _again(
    texts: Sequence[str], spans: Sequence[Sequence[Span] | None], tokenizer: Any, *, max_length: int
) -> list[list[int]]:
    """Stored texts, of which these characters count, in the tokens of another tokenizer."""
    talks = [conversations.Rendered(text, own, ()) for text, own in zip(texts, spans, strict=True) if own is not None]
    answered = conversations.encoded(talks, tokenizer, max_length=max_length)
    others = [text for text, own in zip(texts, spans, strict=True) if own is None]
    plain = iter(tokenization.encode(others, tokenizer, max_length=max_length))
    return [next(plain) if own is None else next(answered).ids for own in spans]


@dataclass(frozen=True)
class Golden:
    """A text that a served model is tried on, or the messages before an answer, and the tokens that its model learned
    it by."""

    text: str | list[dict[str, str]]
    tokens: list[str]


def golden(directory: Path, split: str, count: int) -> list[Golden]:
    """Evenly spaced texts of a split, from short to long, then an empty one, and one that is too long for any row. Of
    conversations, what comes before their last answer.

    The tokens are those of the tokenizer that the base model was trained with, as they were stored.

    Raises:
        HeldOutError: it is the test split, and the stage that asks may not open it.
    """
    rows, limit = read(directory, split), info(directory).max_length
    core = tokenization.standalone(directory / TOKENIZER / tokenization.FILE, max_length=limit)
    if talks := _asked(directory, split):
        chosen_talks = talks[:: max(1, len(talks) // count)][:count]
        return [Golden(asked, [str(core.id_to_token(index)) for index in ids]) for asked, ids in chosen_talks]
    stored = dict(zip(rows.texts, rows.input_ids, strict=True))
    by_length = sorted(stored, key=lambda text: (len(text), text))
    step = max(1, len(by_length) // count)
    chosen = by_length[::step][:count]
    made = ["", _too_long(by_length, stored, limit)]
    stored |= {text: core.encode(text).ids for text in made}
    return [Golden(text, [str(core.id_to_token(index)) for index in stored[text]]) for text in (*chosen, *made)]


def _asked(directory: Path, split: str) -> list[tuple[list[dict[str, str]], list[int]]]:
    """Of the conversations of a split what comes before the last answer that is there, and its tokens, shortest
    first."""
    with _opened(directory, split) as table:
        if "messages" not in table.column_names:
            return []
        rows = table.select(["messages", "spans", "counted", "input_ids"]).to_pylist()
    found = []
    for row in rows:
        if row["messages"] is not None:
            first = max(at for at, counts in enumerate(row["counted"]) if counts and not row["counted"][at - 1])
            asked = conversations.before_answer(json.loads(row["messages"]), len(row["spans"]))
            found.append((asked, row["input_ids"][:first]))
    return sorted(found, key=lambda one: (len(one[1]), one[1]))


def _too_long(by_length: Sequence[str], stored: Mapping[str, Sequence[int]], limit: int) -> str:
    """Texts in one, the longest first, until together they have twice the tokens that a row may have."""
    parts: list[str] = []
    tokens = 0
    while tokens <= 2 * limit:
        parts.append(by_length[-1 - len(parts) % len(by_length)])
        tokens += max(1, len(stored[parts[-1]]) - 2)  # without special tokens
    return " ".join(parts)
