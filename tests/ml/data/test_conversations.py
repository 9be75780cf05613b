"""Conversations: what is read as one, what of it counts by templates of every shape, and how it is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml import tokens
from tasks.ml.data import conversations, datasets, held_out, sources, splitting, table_files, tables
from tasks.ml.data.conversations import Conversation
from tasks.ml.problems import causal_lm
from tests.ml import chats

TALK = [
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "Fine, thanks."},
    {"role": "user", "content": "Say good-bye: 🙂"},
    {"role": "assistant", "content": "Bye 🙂 ünd\nso on."},
]
SAID = [TALK[1]["content"], TALK[3]["content"]]


def table(*talks: Any, text: str = "messages") -> tables.Table:
    columns = tables.Columns("talks.jsonl", "line", range(1, len(talks) + 1), {text: list(talks)})
    return tables.check(columns, text=text, label=None)


def rendered(talk: Any, tokenizer: Any) -> conversations.Rendered:
    found = conversations.rendered({"train": table(talk)}, tokenizer, completes=True)["train"].texts[0]
    assert isinstance(found, Conversation)
    return found.as_read()


def cut(text: str, spans: Any) -> list[str]:
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "before", "mark"),
    [
        (chats.CHATML, "", "<|im_end|>"),
        (chats.SMOLLM2, "", "<|im_end|>"),
        (chats.LLAMA3, "", "<|eot_id|>"),
        (chats.MISTRAL, " ", "</s>"),
        (chats.GEMMA, "", "<end_of_turn>"),
        (chats.PLAIN, "", "\n"),
    ],
)
def test_what_the_assistant_says_counts_to_the_end_of_its_turn(template: str, before: str, mark: str) -> None:
    tokenizer = chats.tokenizer(template)
    found = rendered(TALK, tokenizer)
    assert found.text == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert cut(found.text, found.counted) == [before + one + mark for one in SAID]
    assert cut(found.text, found.said) == SAID
    assert found.num_bytes == sum(len(one.encode()) for one in SAID)
    (one,) = conversations.encoded([found], tokenizer, max_length=1000)
    assert one.ids == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False), "no second first token"
    answers = [token for token, counts in zip(one.ids, one.ids.counted, strict=True) if counts]
    assert tokenizer.decode(answers) == "".join(before + one + mark for one in SAID)


def test_a_system_message_that_the_template_makes_up_is_no_answer() -> None:
    own = [{"role": "system", "content": "Be brief."}, *TALK]
    tokenizer = chats.tokenizer(chats.SMOLLM2)
    for talk in (TALK, own):
        found = rendered(talk, tokenizer)
        assert cut(found.text, found.said) == SAID
        assert ("You are helpful" in found.text) == (talk is TALK)


def test_what_a_template_adds_to_a_single_answer_is_learned_with_it() -> None:
    found = rendered(TALK[:2], chats.tokenizer(chats.THINKING))
    assert cut(found.text, found.counted) == [f"<think>\n\n</think>\n\n{SAID[0]}<|im_end|>"]
    assert cut(found.text, found.said) == SAID[:1]


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (chats.THINKING, TALK, "writes what comes before message 2 otherwise when more follows"),
        (chats.WITHOUT_PROMPT, TALK, r"has no generation prompt, and writes '<\|im_start\|>assistant' before"),
        (
            chats.CHATML.replace("m['content']", "m['content'] | upper"),
            TALK,
            "changes what the assistant says in messa",
        ),
        (chats.GEMMA, [{"role": "system", "content": "x"}, *TALK], "roles system, user, .*System role not supported"),
        (chats.MISTRAL, [TALK[0], *TALK], "cannot render the roles user, user.*roles must alternate"),
        (None, TALK, "has no chat template to render it with; name a base model that was made for conversations"),
    ],
)
def test_a_template_that_does_not_serve_is_refused_in_one_sentence(template: Any, talk: Any, said: str) -> None:
    with pytest.raises(FeatherweightError, match=rf"^talks.jsonl, line 1, column 'messages': .*{said}"):
        rendered(talk, chats.tokenizer(template))


def test_a_model_that_labels_texts_reads_no_conversations() -> None:
    with pytest.raises(
        FeatherweightError, match="line 1, column 'messages': a conversation, from which only problem: "
    ):
        conversations.rendered({"train": table(TALK)}, chats.tokenizer(), completes=False)


def test_texts_are_left_as_they_are_whatever_the_tokenizer() -> None:
    plain = {"train": table("a text", "another")}
    assert conversations.rendered(plain, chats.tokenizer(None), completes=False) == plain


QUESTION, ANSWER = TALK[0], TALK[1]


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([], "the conversation is empty"),
        ([QUESTION], "no message is the assistant's"),
        ([QUESTION, {**ANSWER, "weight": 0}], "no message is the assistant's"),
        ([ANSWER], "message 1 is the assistant's, and there is nothing before it"),
        ([{"content": "x"}, ANSWER], "message 1 has no role"),
        ([QUESTION, {"role": "assistant"}], "message 2: its content is missing"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "message 1: its content is list, not text"),
        ([QUESTION, {**ANSWER, "tool_calls": [1]}], "message 2 has 'tool_calls', which is not read"),
        ([QUESTION, {"role": "assistant", "content": " "}], "message 2: the assistant says nothing"),
        ([QUESTION, {**ANSWER, "weight": 2}], "message 2: weight is 2; use 0 for what is not to be learned"),
        ([QUESTION, {**ANSWER, "content": "\ud83d"}], "half a surrogate pair"),
    ],
)
def test_a_conversation_of_which_nothing_can_be_learned_is_refused(talk: Any, said: str) -> None:
    with pytest.raises(FeatherweightError, match=rf"^talks.jsonl, line 2, column 'messages': .*{said}"):
        table(TALK, talk)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((TALK, "a text"), "line 2, column 'messages': a text among conversations"),
        (("a text", TALK), "line 2, column 'messages': a conversation among texts"),
        ((["a", "b"],), r"line 1, column 'messages': .* \(list\) is not text"),
    ],
)
def test_a_column_holds_one_or_the_other(values: Any, said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        table(*values)


def test_splits_of_a_source_hold_one_or_the_other() -> None:
    both = {"train": table(TALK), "test": table("a text")}
    with pytest.raises(FeatherweightError, match=r"column 'messages': conversations, and talks.jsonl holds te"):
        conversations.rendered(both, chats.tokenizer(), completes=True)


def test_an_answer_of_weight_0_is_read_and_not_learned() -> None:
    found = rendered([QUESTION, {**ANSWER, "weight": 0}, *TALK[2:]], chats.tokenizer())
    assert cut(found.text, found.said) == SAID[1:]
    assert SAID[0] in found.text


def test_sharegpt_and_empty_keys_of_tables_mean_the_same(tmp_path: Path) -> None:
    names = {"user": "human", "assistant": "gpt"}
    theirs = [{"from": names[one["role"]], "value": one["content"]} for one in TALK]
    empty = [{**one, "tool_calls": None, "weight": None} for one in TALK]
    assert conversations.parse(theirs) == conversations.parse(empty) == conversations.parse(TALK)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": theirs}]))
    pq.write_table(pa.Table.from_pylist([{"messages": empty}]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert table_files.read(tmp_path / name, text="messages", label=None).texts == [conversations.parse(TALK)]


def talks(count: int) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": f"Number {index}?"}, {"role": "assistant", "content": "It is " + "good " * index}]
        for index in range(count)
    ]


def written(directory: Path, tokenizer: Any, source: tables.Table, *, max_length: int) -> dict[str, Any]:
    """Divides rows and writes them, as the stage does."""
    found = causal_lm.targets(conversations.rendered({"train": source}, tokenizer, completes=True))
    division = splitting.divide(found, test=0.2, selection=0.2, calibration=0.1)
    return datasets.write(directory, division, tokenizer, max_length=max_length)


def splits(directory: Path, tokenizer: Any = None) -> list[datasets.Split]:
    with held_out.asking("validate"):
        return [datasets.read(directory, name, tokenizer) for name in splitting.SPLITS]


def test_what_counts_is_stored_and_found_again_by_another_tokenizer(tmp_path: Path) -> None:
    tokenizer, other = chats.tokenizer(), chats.tokenizer(merges=True)
    profile = written(tmp_path, tokenizer, table(*talks(40)), max_length=400)
    assert "without_answer" not in profile["dropped"]
    for ours, theirs in zip(splits(tmp_path), splits(tmp_path, other), strict=True):
        for text, target, *rows in zip(ours.texts, ours.targets, ours.input_ids, theirs.input_ids, strict=True):
            said = text.rpartition("assistant\n")[2].removesuffix("\n")
            for reader, row in zip((tokenizer, other), rows, strict=True):
                assert reader.decode(row) == text
                assert (
                    reader.decode([one for one, counts in zip(row, tokens.counted(row), strict=True) if counts]) == said
                )
            assert target == len(said.removesuffix("<|im_end|>").strip())
            assert len(rows[1]) < len(rows[0])


def test_a_cut_conversation_stays_whole_where_it_has_more_tokens_by_another_tokenizer(tmp_path: Path) -> None:
    fewer, more = chats.tokenizer(merges=True), chats.tokenizer()
    written(tmp_path, fewer, table(*talks(40)), max_length=60)
    for ours, theirs in zip(splits(tmp_path), splits(tmp_path, more), strict=True):
        assert any(len(row) > 60 for row in theirs.input_ids)
        for text, mine, their in zip(ours.texts, ours.input_ids, theirs.input_ids, strict=True):
            assert fewer.decode(mine) == more.decode(their) == text
            counted = [
                [one for one, counts in zip(row, tokens.counted(row), strict=True) if counts] for row in (mine, their)
            ]
            assert fewer.decode(counted[0]) == more.decode(counted[1])


def test_a_long_conversation_is_cut_at_its_end_and_one_without_an_answer_is_left_out(tmp_path: Path) -> None:
    tokenizer = chats.tokenizer()
    long = [[{"role": "user", "content": f"{index} why? " * 20}, ANSWER] for index in range(3)]
    profile = written(tmp_path, tokenizer, table(*talks(40), *long), max_length=80)
    assert profile["dropped"]["without_answer"] == 3
    assert "3 conversations are left out, since their first answer begins after data.max_length, 80" in str(profile)
    found = splits(tmp_path)
    assert sum(map(len, found)) == 40
    assert sum(about["rows_cut"] for about in profile["splits"].values()) > 10
    for split in found:
        for text, row, target in zip(split.texts, split.input_ids, split.targets, strict=True):
            assert len(row) <= 80
            assert tokenizer.decode(row) == text
            assert text.startswith("<|im_start|>user\nNumber")
            assert (
                target == len(text.rpartition("assistant\n")[2].partition("<|im_end|>")[0].strip(" ")) or len(row) == 80
            )


def test_a_length_at_which_no_answer_begins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match=r"data.max_length: 16 tokens end before the first answer of every"):
        written(tmp_path, chats.tokenizer(), table(*talks(40)), max_length=16)


def test_rows_fall_where_they_do_whatever_the_template(tmp_path: Path) -> None:
    found = []
    for name, template in (("a", chats.CHATML), ("b", chats.LLAMA3)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, chats.tokenizer(template), table(*talks(40), talks(3)[2]), max_length=400)
        found.append(
            [sorted(text.partition("?")[0].rpartition("N")[2] for text in one.texts) for one in splits(tmp_path / name)]
        )
    assert found[0] == found[1]
    assert sum(map(len, found[0])) == 40, "the same conversation twice is there once"


def test_a_folder_of_conversations_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks(5)))
    columns, total = sources.look(f"file:{path}", cache=tmp_path, most=3)
    assert (total, len(columns.values["messages"])) == (5, 3)
