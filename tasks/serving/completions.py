"""Continues texts with a decoder, token by token: what ``predictor.py`` answers with where a model generates.

It lies beside ``predictor.py``, in a bundle too, and needs what that needs.

S = new tokens, V = vocabulary, K = heads of keys and values, D = head size.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from tasks.serving.predictor import Predictor

DIGITS = 5
"""Of a golden margin, after the point."""
NEAR_TIE = 0.5
"""Largest change of a golden token's margin, in nats, by which another token may be the likeliest on another CPU."""
GOLDEN_PROMPT, GOLDEN_TOKENS = 64, 8
"""Most tokens of a golden text that is continued, and by how many it is."""
PREFILL = 128
"""Tokens of a prompt that are read at once: each of them has logits of a whole vocabulary."""
BEFORE = 6
"""Tokens of the prompt that are decoded with the first new one, so that it gets the space that it begins with."""
PAST, PRESENT = "past_key_values.", "present."
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class Completions:
    """Of a decoder: the ``completion`` that follows a text, and how many ``tokens`` were generated for it.

    Greedy, and one text at a time: the runtime's attention reads several new tokens after cached ones of one text only.
    A token after which nothing is generated counts as generated, and is no part of the text.

    Attributes:
        ends: tokens after which nothing is generated.
        context: tokens that a text and what continues it may have together.
    """

    GENERATES: ClassVar = True
    INPUT: ClassVar = "text"
    COLUMNS: ClassVar[dict[str, type]] = {"completion": str, "tokens": int}
    unit = 1.0

    def __init__(self, manifest: dict[str, Any]) -> None:
        answer = manifest["answer"]
        self.ends, self.context = frozenset(answer["ends"]), int(answer["context"])
        self.options: Mapping[str, int] = {"new_tokens": answer["new_tokens"]}

    def of_argument(self, argument: str) -> Any:
        return argument

    def encode(self, model: Predictor, texts: Sequence[Any]) -> list[list[int]]:
        return model.encode(texts)

    def require(self, model: Predictor, texts: Sequence[Any]) -> list[list[int]]:
        """Token ids of texts, each of which can be continued.

        Raises:
            ValueError: one cannot, because it has no token or leaves no room for a new one.
        """
        rows = self.encode(model, texts)
        for position, ids in enumerate(rows):
            if not ids:
                raise ValueError(
                    f"row {position}: the tokenizer makes no token of this text, so there is nothing to continue; "
                    "give it a word to begin with"
                )
            if len(ids) >= self.context:
                raise ValueError(
                    f"row {position}: the text has {len(ids)} tokens and leaves no room for a new one; give it at most "
                    f"{self.context - 1}, since it and what continues it may have {self.context} together"
                )
        return rows

    def predict(self, model: Predictor, texts: Sequence[Any], *, new_tokens: int | None = None) -> list[dict[str, Any]]:
        limit, answers = self._limit(new_tokens), []
        for ids in self.require(model, texts):
            new = [token for token, _ in self.generate(model, ids, limit)]
            answers.append({"completion": "".join(self._pieces(model, ids, new)), "tokens": len(new)})
        return answers

    def stream(self, model: Predictor, text: Any, *, new_tokens: int | None = None) -> Iterator[str]:
        limit, (ids,) = self._limit(new_tokens), self.require(model, [text])
        return self._pieces(model, ids, (token for token, _ in self.generate(model, ids, limit)))

    def _limit(self, new_tokens: int | None) -> int:
        limit = self.options["new_tokens"] if new_tokens is None else new_tokens
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"new_tokens: a whole number of at least 1 is wanted, not {limit!r}")
        return limit

    def generate(self, model: Predictor, ids: Sequence[int], limit: int) -> Iterator[tuple[int, np.ndarray]]:
        """The likeliest tokens after a text, each with the logits (V,) that it was chosen by.

        Args:
            ids: tokens of the text, fewer than ``context``.
            limit: number of new tokens; there are fewer where the text ends, or the context does.
        """
        steps = [list(ids[start : start + PREFILL]) for start in range(0, len(ids), PREFILL)]
        cache = _empty_cache(model.session)
        read = 0
        for _ in range(min(limit, self.context - len(ids))):
            for new in steps:
                read += len(new)
                logits, cache = _step(model.session, new, read, cache)
            last = logits.numpy()[0, -1]
            token = int(last.argmax())
            yield token, last
            if token in self.ends:
                return
            steps = [[token]]

    def _pieces(self, model: Predictor, ids: Sequence[int], new: Iterable[int]) -> Iterator[str]:
        """What each new token adds to the text; characters of several tokens come whole.

        A token is decoded with those before it, since a tokenizer's decoder may drop the space that a text begins with.
        """
        window, shown = list(ids[-BEFORE:]), model.decode(ids[-BEFORE:])
        kept = len(window)
        for token in new:
            if token in self.ends:
                break
            window.append(token)
            text = model.decode(window)
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                window, kept = window[kept:], len(window) - kept
                shown = model.decode(window)
        if rest := model.decode(window)[len(shown) :]:  # of a character that was not finished
            yield rest

    def _beginning(self, model: Predictor, text: Any) -> Any:
        """As much of a golden text as is continued."""
        room = max(1, min(GOLDEN_PROMPT, self.context - GOLDEN_TOKENS))
        encoding = model.tokenizer.encode(text)
        return text[: encoding.offsets[room - 1][1]] if len(encoding.ids) > room else text

    def golden(self, model: Predictor, text: Any) -> dict[str, Any] | None:
        """A row of ``golden.json``: the beginning of a text, its tokens, the completion and its tokens, and by how much
        each of them was likelier than the next best, in nats. ``None`` for a text that has no tokens."""
        text = self._beginning(model, text)
        (ids,) = self.encode(model, [text])
        if not 0 < len(ids) < self.context:
            return None
        found = list(self.generate(model, ids, GOLDEN_TOKENS))
        new = [token for token, _ in found]
        return {
            self.INPUT: text,
            "input_ids": ids,
            "completion": "".join(self._pieces(model, ids, new)),
            "tokens": len(new),
            "output_ids": new,
            "margins": [round(margin(logits, token), DIGITS) for token, logits in found],
        }

    def check(self, model: Predictor, row: Mapping[str, Any]) -> float:
        """Largest change of the margins of a golden row's tokens, in nats.

        Tokens must be the same until the likeliest one changes in a near tie; what follows then is another text.

        Raises:
            RuntimeError: a token changed that was not nearly tied, or the same tokens are another text.
        """
        worst = 0.0
        expected = row["output_ids"]
        found = list(self.generate(model, row["input_ids"], len(expected)))
        for place, (token, wanted, (new, logits)) in enumerate(zip(expected, row["margins"], found, strict=False)):
            change = abs(margin(logits, token) - wanted)
            if new != token or not np.isfinite(change):
                if not change <= NEAR_TIE:
                    raise RuntimeError(f"expected the new tokens {expected}, found {new} at place {place}")
                return max(worst, change)
            worst = max(worst, change)
        text = "".join(self._pieces(model, row["input_ids"], expected))
        if (len(found), text) != (row["tokens"], row["completion"]):
            raise RuntimeError(
                f"expected {row['tokens']} tokens and {row['completion']!r}, found {len(found)}, {text!r}"
            )
        return worst


class Conversations(Completions):
    """Of a decoder that learned to answer: the ``completion`` that is the assistant's next message.

    A conversation is a list of messages, objects with the texts ``role`` and ``content``, and is read as the model
    learned it: by the chat template of its tokenizer, which writes the special tokens, too.
    """

    INPUT: ClassVar = "messages"

    def __init__(self, manifest: dict[str, Any]) -> None:
        super().__init__(manifest)
        chat = manifest["answer"]["chat"]
        self.template, self.special_tokens = compiled(chat["template"]), chat["special_tokens"]

    def of_argument(self, argument: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": argument}]

    def encode(self, model: Predictor, texts: Sequence[Any]) -> list[list[int]]:
        rendered = [self.render(one, position) for position, one in enumerate(texts)]
        return [encoding.ids for encoding in model.tokenizer.encode_batch(rendered, add_special_tokens=False)]

    def render(self, messages: Any, position: int = 0, *, asks: bool = True) -> str:
        """What a model reads of messages.

        Args:
            position: of their row, for people.
            asks: whether an answer is to come.

        Raises:
            ValueError: they are no messages, or the template cannot write them.
        """
        from jinja2 import TemplateError

        found = list(messages) if isinstance(messages, list | tuple | np.ndarray) else []
        if not found or not all(map(_is_message, found)):
            raise ValueError(
                f"row {position}: messages must be a list of objects with role and content, which are strings"
            )
        plain = [{"role": str(one["role"]), "content": str(one["content"])} for one in found]
        try:
            return str(
                self.template.render(
                    messages=plain, tools=None, documents=None, add_generation_prompt=asks, **self.special_tokens
                )
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"row {position}: the chat template cannot write these messages: {error}") from None

    def _beginning(self, model: Predictor, text: Any) -> Any:
        return text


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and all(isinstance(one.get(name), str) for name in ("role", "content"))


def compiled(template: str) -> Any:
    """A chat template, in a sandbox, with what transformers gives to it."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what an assistant says, to those who ask for it."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def in_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = in_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def margin(logits: np.ndarray, token: int) -> float:
    """By how many nats a token is likelier than the best other one, of logits (V,); negative where it is not."""
    return float(logits[token] - np.delete(logits, token).max())


def _empty_cache(session: Any) -> dict[str, Any]:
    """Keys and values (1, K, 0, D) of every layer, by the names of the graph's inputs."""
    return {
        one.name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((1, one.shape[1], 0, one.shape[3]), DTYPES[one.type])
        )
        for one in session.get_inputs()
        if one.name.startswith(PAST)
    }


def _step(session: Any, new: Sequence[int], read: int, cache: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Reads new tokens of one text: its logits (1, S, V), and the cache with them, which stays where it was computed.

    Args:
        read: tokens of the text so far, these included.
    """
    binding = session.io_binding()
    binding.bind_cpu_input("input_ids", np.array([new], dtype=np.int64))
    binding.bind_cpu_input("attention_mask", np.ones((1, read), dtype=np.int64))
    binding.bind_output("logits", "cpu")
    device = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
    for name, value in cache.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_output(name.replace(PAST, PRESENT), device)
    session.run_with_iobinding(binding)
    logits, *values = binding.get_outputs()
    return logits, dict(zip(cache, values, strict=True))
