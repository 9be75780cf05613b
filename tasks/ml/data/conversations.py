"""Texts that are lists of messages, of which what the assistant says is learned.

A conversation is rendered by the chat template of the base model's tokenizer. What counts in it is found by rendering
what comes before each of the assistant's messages, as one who asks for an answer does, and the same with the message:
all that is added counts, up to the mark that ends the turn. So nothing is to be known of a template but that it adds to
what it wrote before, which is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import tokenization
from tasks.ml.tokens import Partly

if TYPE_CHECKING:
    from tasks.ml.data.tables import Table

ASSISTANT = "assistant"
OTHER_NAMES = {"human": "user", "gpt": ASSISTANT}
"""What ShareGPT calls roles → what templates call them."""
NOT_READ = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a message that say something which would be lost."""
EXAMPLE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'

Span = tuple[int, int]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model reads it.

    Attributes:
        counted: characters of the text that count, from and to: of each turn of the assistant what it says, with the
            mark that ends it.
        said: those of them that the assistant says, without marks.
    """

    text: str
    counted: Sequence[Span]
    said: Sequence[Span]

    def until(self, end: int) -> Rendered:
        """The same, cut after so many characters."""
        return Rendered(self.text[:end], _until(self.counted, end), _until(self.said, end))

    @property
    def num_bytes(self) -> int:
        """Bytes of what the assistant says."""
        return sum(len(self.text[start:end].encode()) for start, end in self.said)


class Conversation(str):
    """A conversation as a text: its messages in JSON, by which it is told from others, whatever the template.

    Attributes:
        messages: ``role`` and ``content`` of each, and ``weight`` 0 of what the assistant says and does not count.
        rendered: as the base model reads it; ``None`` until that is known.
    """

    messages: Sequence[Message]
    rendered: Rendered | None

    def __new__(cls, messages: Sequence[Message], rendered: Rendered | None = None) -> Conversation:
        made = super().__new__(cls, json.dumps(messages, ensure_ascii=False))
        made.messages, made.rendered = messages, rendered
        return made

    def as_read(self) -> Rendered:
        """As the base model reads it, which is known by now."""
        assert self.rendered is not None
        return self.rendered


def parse(value: Sequence[Mapping[str, Any]]) -> Conversation:
    """Reads a list of messages, as TRL, the fine-tuning files of OpenAI and ShareGPT have them.

    Raises:
        ValueError: nothing can be learned of it, or a message is not text.
    """
    messages = [_message(number, one) for number, one in enumerate(value, start=1)]
    if not messages:
        raise ValueError(f"the conversation is empty; a conversation is a list such as {EXAMPLE}")
    if messages[0]["role"] == ASSISTANT:
        raise ValueError("message 1 is the assistant's, and there is nothing before it that it answers; leave it out")
    if not any(_counts(one) for one in messages):
        raise ValueError("no message is the assistant's, and only what the assistant says is learned; remove the row")
    return Conversation(messages)


def _counts(message: Message) -> bool:
    return bool(message["role"] == ASSISTANT and message.get("weight", 1))


def _message(number: int, one: Mapping[str, Any]) -> Message:
    role, content = (_first(one, *names) for names in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or not role.strip():
        raise ValueError(f"message {number} has no role; a conversation is a list such as {EXAMPLE}")
    if lost := [name for name in NOT_READ if one.get(name)]:
        raise ValueError(f"message {number} has {lost[0]!r}, which is not read; leave it out, or put it into content")
    if not isinstance(content, str):
        kind = "missing" if content is None else f"{type(content).__name__}, not text"
        raise ValueError(f"message {number}: its content is {kind}; only text is read, no images, sound or tools")
    role = OTHER_NAMES.get(role, role)
    if role != ASSISTANT:
        return {"role": role, "content": content}
    if not content.strip():
        raise ValueError(f"message {number}: the assistant says nothing; remove the message or give it a text")
    weight = one.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"message {number}: weight is {weight!r}; use 0 for what is not to be learned, or 1")
    return {"role": role, "content": content, **({"weight": 0} if weight == 0 else {})}


def _first(one: Mapping[str, Any], *names: str) -> Any:
    """Of a message the value that is there: tables have every key in every row."""
    return next((one[name] for name in names if one.get(name) is not None), None)


def num_bytes(text: str) -> int:
    """Bytes of what is learned of a text: of a conversation, what the assistant says."""
    if not isinstance(text, Conversation):
        return len(text.encode())
    return sum(len(one["content"].strip().encode()) for one in text.messages if _counts(one))


def before_answer(messages: Sequence[Message], number: int) -> list[dict[str, str]]:
    """What comes before the answer of this number, counted from 1, of those that count."""
    places = [place for place, one in enumerate(messages) if _counts(one)]
    return [{"role": one["role"], "content": one["content"]} for one in messages[: places[number - 1]]]


def rendered(tables: Mapping[str, Table], tokenizer: Any, *, completes: bool) -> dict[str, Table]:
    """The same tables, with their conversations as the base model reads them.

    Args:
        completes: whether the model learns to continue texts.

    Raises:
        FeatherweightError: some tables hold conversations and others do not; a model that continues nothing, or a
            tokenizer without a template, is given conversations; or the template does not render one, or so that what
            counts cannot be told.
    """
    kinds = {isinstance(table.texts[0], Conversation): table for table in tables.values()}
    if len(kinds) > 1:
        raise FeatherweightError(
            f"{kinds[True].origin}, column {kinds[True].text_column!r}: conversations, and {kinds[False].origin} holds "
            "texts; all splits of a source hold one or the other"
        )
    if True in kinds:
        _require_template(kinds[True], tokenizer, completes=completes)
    return {name: _rendered(table, tokenizer) for name, table in tables.items()}


def _require_template(table: Table, tokenizer: Any, *, completes: bool) -> None:
    place = f"{table.place(0)}, column {table.text_column!r}"
    if not completes:
        raise FeatherweightError(
            f"{place}: a conversation, from which only problem: causal-lm learns; set that, or name a column of texts "
            "in data.text"
        )
    if not tokenizer.chat_template:
        raise FeatherweightError(
            f"{place}: a conversation, and the tokenizer of the base model {tokenizer.name_or_path} has no chat "
            "template to render it with; name a base model that was made for conversations (often called instruct or "
            "chat), or write each conversation as one text"
        )


def _rendered(table: Table, tokenizer: Any) -> Table:
    texts: list[str] = []
    for index, text in enumerate(table.texts):
        try:
            if isinstance(text, Conversation):
                text = Conversation(text.messages, _render(text.messages, tokenizer))
        except ValueError as error:
            raise FeatherweightError(f"{table.place(index)}, column {table.text_column!r}: {error}") from None
        texts.append(text)
    return replace(table, texts=texts)


def _render(messages: Sequence[Message], tokenizer: Any) -> Rendered:
    """Renders a conversation, and finds what counts in it.

    Raises:
        ValueError: the template refuses it, or does not add to what it wrote before.
    """
    plain = [{"role": one["role"], "content": one["content"]} for one in messages]
    whole = _applied(plain, tokenizer)
    counted: list[Span] = []
    said: list[Span] = []
    for index, message in enumerate(messages):
        if not _counts(message):
            continue
        before, after = _applied(plain[:index], tokenizer, asks=True), _applied(plain[: index + 1], tokenizer)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"the base model's chat template writes what comes before message {index + 1} otherwise when more "
                "follows, so that an answer cannot be told from its question; use a template that only adds to what "
                "it wrote, or conversations of one answer"
            )
        turn, content = after[len(before) :], message["content"].strip()
        place = turn.find(content)
        if place < 0:
            raise ValueError(
                f"the base model's chat template changes what the assistant says in message {index + 1}; use a "
                "template that writes it as it is"
            )
        if turn[:place].strip() and before == _applied(plain[:index], tokenizer):
            raise ValueError(
                f"the base model's chat template has no generation prompt, and writes {turn[:place].strip()!r} before "
                "what the assistant says; use a template that writes that where add_generation_prompt is set"
            )
        start, end = len(before) + place, len(before) + place + len(content)
        said.append((start, end))
        counted.append((len(before), end + _mark(after[end:], tokenizer)))
    return Rendered(whole, counted, said)


def _applied(messages: Sequence[Message], tokenizer: Any, *, asks: bool = False) -> str:
    """What a template makes of messages; with what comes before an answer where one is asked for."""
    from jinja2 import TemplateError

    try:
        made = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(one["role"] for one in messages)
        raise ValueError(
            f"the base model's chat template cannot render the roles {roles}: {error}; write the messages as it wants "
            "them"
        ) from None
    return str(made)


def _mark(rest: str, tokenizer: Any) -> int:
    """Characters of what follows an answer that end its turn: up to its first special token, or all of them."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = re.search("|".join(map(re.escape, sorted(special, key=len, reverse=True))), rest) if special else None
    return found.end() if found else len(rest)


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        ids: at most as many as a row may have.
        rendered: as far as these go.
        length: tokens of the whole.
    """

    ids: Partly
    rendered: Rendered
    length: int


def encoded(texts: Sequence[Rendered], tokenizer: Any, *, max_length: int) -> Iterator[Encoded]:
    """Tokens of conversations, of which the first ``max_length`` are kept, 0: all, without special ones beside the
    template's.

    A token counts if it is of any character that does.
    """
    whole = tokenization.encodings([one.text for one in texts], tokenizer, special_tokens=False)
    for one, encoding in zip(texts, whole, strict=True):
        most = max_length or len(encoding.ids)
        offsets = encoding.offsets[:most]
        end = max((end for _, end in offsets), default=0) if len(encoding.ids) > most else len(one.text)
        ids = Partly(encoding.ids[:most], (_is_in(one.counted, *offset) for offset in offsets))
        yield Encoded(ids, one.until(end), len(encoding.ids))


def _is_in(spans: Sequence[Span], start: int, end: int) -> bool:
    return any(start < to and max(end, start + 1) > since for since, to in spans)


def _until(spans: Sequence[Span], end: int) -> list[Span]:
    return [(since, min(to, end)) for since, to in spans if since < end]
