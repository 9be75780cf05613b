"""Whatever the files of a tokenizer say, a text has the ids that transformers gives it, in training and served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers import trainers as learners
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import tokenization

LONG = "a very great film with moving acting and a dull plot but not a funny story"
TEXTS = [
    "",
    "dull",
    LONG,
    "Unfunny [SEP] film, ümläut",
    "  a\tthe\u200bfilm \x07",
    "日本 plot <tag>",
    "great " * 50 + "dull",
]
MAX_LENGTH = 10


def edit(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncation(direction: str, max_length: int) -> dict[str, Any]:
    return {"direction": direction, "max_length": max_length, "strategy": "LongestFirst", "stride": 0}


def padding(direction: str, strategy: Any) -> dict[str, Any]:
    return {
        "direction": direction, "strategy": strategy, "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip


def of_class_bert(directory: Path) -> None:
    """An uncased file under a configuration that keeps case, which transformers obeys."""
    edit(directory, "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)


SETTINGS: dict[str, Callable[[Path], None]] = {
    "as usual": lambda directory: None,
    "cut on the left": lambda directory: edit(directory, "tokenizer_config.json", truncation_side="left"),
    "padded on the left": lambda directory: edit(directory, "tokenizer_config.json", padding_side="left"),
    "short at most": lambda directory: edit(directory, "tokenizer_config.json", model_max_length=6),
    "preset to cut on the left": lambda directory: edit(directory, "tokenizer.json", truncation=truncation("Left", 5)),
    "preset to be padded to 48": lambda directory: edit(
        directory, "tokenizer.json", truncation=truncation("Right", 12), padding=padding("Left", {"Fixed": 48})
    ),
    "of class BERT": of_class_bert,
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_text_has_the_same_ids_wherever_it_is_asked_about(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, change: Callable[[Path], None]
) -> None:
    base, saved, again = (tmp_path / name for name in ("base", "saved", "again"))
    for directory in (saved, again):
        directory.mkdir()
    tokenizer.add_tokens(["<tag>"])
    tokenizer.save_pretrained(base)
    change(base)
    reference = AutoTokenizer.from_pretrained(base)
    expected = [reference(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in TEXTS]

    learned = tokenization.load(base, max_length=MAX_LENGTH)
    assert tokenization.encode(TEXTS, learned, max_length=MAX_LENGTH) == expected
    tokenization.save(learned, saved)
    reread = tokenization.load(saved)
    assert tokenization.encode(TEXTS, reread, max_length=MAX_LENGTH) == expected
    assert tokenization.digest(reread) == tokenization.digest(learned)
    tokenization.save(reread, again)
    for directory in (saved, again):
        served = tokenization.standalone(directory / "tokenizer.json", max_length=MAX_LENGTH)
        assert [served.encode(text).ids for text in TEXTS] == expected, directory.name
        alone = Tokenizer.from_file(str(directory / "tokenizer.json"))
        batch = alone.encode_batch(TEXTS)
        assert {len(one.ids) for one in batch} == {MAX_LENGTH}
        for one, ids in zip(batch, expected, strict=True):
            assert one.ids == ids + [learned.pad_token_id] * (MAX_LENGTH - len(ids))
            assert one.attention_mask == [1] * len(ids) + [0] * (MAX_LENGTH - len(ids))


def test_settings_that_encode_otherwise_have_another_digest(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    digests = {}
    for name, change in SETTINGS.items():
        tokenizer.save_pretrained(tmp_path / name)
        change(tmp_path / name)
        digests[name] = tokenization.digest(tokenization.load(tmp_path / name))
    cut_left = {digests.pop("cut on the left"), digests.pop("preset to cut on the left")}
    assert len(cut_left) == 1
    assert digests.pop("of class BERT") not in digests.values()
    assert len(set(digests.values())) == 1
    assert not cut_left & set(digests.values())


def test_a_call_of_transformers_in_between_changes_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.truncation_side = "left"
    before = tokenization.encode(TEXTS, tokenizer, max_length=MAX_LENGTH)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5)
    assert tokenization.encode(TEXTS, tokenizer, max_length=MAX_LENGTH) == before
    tokenization.save(tokenizer, tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer(TEXTS)
    tokenization.save(tokenizer, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == content


def test_byte_pairs_are_read_alike(tmp_path: Path) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS, learners.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    base = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        truncation_side="left",
    )  # fmt: skip
    tokenization.save(base, tmp_path)
    expected = [base(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in TEXTS]
    served = tokenization.standalone(tmp_path / "tokenizer.json", max_length=MAX_LENGTH)
    assert [served.encode(text).ids for text in TEXTS] == expected
    assert tokenization.encode(TEXTS, tokenization.load(tmp_path), max_length=MAX_LENGTH) == expected


def test_without_a_token_to_pad_with_it_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(FeatherweightError, match=r"tokenizer_config\.json names no pad_token"):
        tokenization.load(tmp_path)
