"""Of what tokens are made, and that texts whose tokens are kept with it are read as before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tasks.ml.pruning import kept_tokens, pieces
from tests.ml import bpe_tokenizers
from tests.ml.bpe_tokenizers import ELSEWHERE, TEXTS

BYTE_LEVEL = [pytest.param(True, id="bytes"), pytest.param(False, id="sentencepiece")]
MERGES = [["a", "b"], ["c", "d"], ["b", "c"], ["ab", "cd"]]
ABCD: dict[str, Any] = {
    "type": "BPE", "merges": MERGES,
    "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5, "bc": 6, "abcd": 7},
}  # fmt: skip


def cut(whole: Any, rows: list[list[int]], keep: float) -> Any:
    """A tokenizer with fewer tokens, as a stage makes it, but without a model."""
    return kept_tokens.cut_tokenizer(whole, kept_tokens.choose_tokens(whole, rows, keep=keep))[0]


def tokens(tokenizer: Any, text: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


def test_a_token_needs_what_its_merges_make_on_the_way() -> None:
    needs = pieces.on_the_way(ABCD)
    assert needs("abcd") == {"ab", "cd"}, "and not bc, which comes after both"
    assert needs("ab") == needs("a") == set()
    assert needs("abc") == set(), "no merge makes it"
    older = pieces.on_the_way(ABCD | {"merges": [" ".join(merge) for merge in MERGES]})
    assert older("abcd") == {"ab", "cd"}


@pytest.mark.parametrize("as_strings", [False, True])
def test_merges_of_what_is_gone_or_into_it_are_gone_and_the_others_keep_their_order(as_strings: bool) -> None:
    merges: list[Any] = [" ".join(merge) for merge in MERGES] if as_strings else MERGES
    stay = {0: 0, 1: 1, 2: 2, 3: 3, 5: 4, 6: 5, 7: 6}
    found = pieces.without(ABCD | {"merges": merges}, stay)
    assert found["merges"] == [merges[1], merges[2]]
    assert found["vocab"] == {"a": 0, "b": 1, "c": 2, "d": 3, "cd": 4, "bc": 5, "abcd": 6}


@pytest.mark.parametrize("byte_level", BYTE_LEVEL)
def test_every_trained_token_is_the_last_of_its_way(byte_level: bool) -> None:
    model = bpe_tokenizers.described(byte_level=byte_level)
    needs, smallest = pieces.on_the_way(model), pieces.smallest(model)
    assert len(smallest) >= 256
    for token in model["vocab"].keys() - smallest - {*bpe_tokenizers.SPECIAL}:
        way = needs(token)
        assert way <= model["vocab"].keys()
        assert len(token) == 2 or way, token
        assert all(needs(piece) <= way for piece in way), "what is on the way needs nothing else"


@pytest.mark.parametrize("byte_level", BYTE_LEVEL)
@pytest.mark.parametrize("keep", [0.55, 0.7, 0.9])
def test_texts_whose_tokens_are_kept_are_read_as_before_and_all_others_come_back_whole(
    byte_level: bool, keep: float
) -> None:
    whole = bpe_tokenizers.build(byte_level=byte_level)
    rows = whole(TEXTS[:40])["input_ids"]
    smaller = cut(whole, rows, keep)
    assert len(smaller) == round(keep * len(whole)) < len(whole)
    known = smaller.get_vocab().keys()
    words = [word for text in TEXTS for word in text.split()]
    alike = 0
    for text in [*words, *TEXTS[:40], *ELSEWHERE, ""]:
        before, after = tokens(whole, text), tokens(smaller, text)
        if known >= {*before}:
            alike += 1
            assert after == before, text
        else:
            assert after != before, text
        assert "<unk>" not in after
        assert bpe_tokenizers.decoded(smaller, text) == bpe_tokenizers.decoded(whole, text) == text
    assert len(words) / 10 < alike < len(words) + 40 + len(ELSEWHERE) + 1


def test_without_its_way_a_token_is_not_made() -> None:
    """What the test above would find, if only frequent tokens were kept."""
    whole = bpe_tokenizers.build(byte_level=True)
    model = bpe_tokenizers.described(byte_level=True)
    token = max((one for one in model["vocab"] if one.isalpha()), key=len)
    ids = [model["vocab"][one] for one in (*pieces.smallest(model), *bpe_tokenizers.SPECIAL, token)]
    lost, _ = kept_tokens.cut_tokenizer(whole, sorted(ids))
    assert token in tokens(whole, token)
    assert token not in tokens(lost, token)
    rows = [[model["vocab"][token]]]
    floor = (len(ids) + len(pieces.on_the_way(model)(token)) - 1) / len(whole)
    assert token in tokens(cut(whole, rows, floor + 0.002), token)


def test_a_token_that_is_only_taken_whole_stays_one() -> None:
    model = bpe_tokenizers.described(byte_level=True) | {"ignore_merges": True}
    model["vocab"]["xylophonic"] = len(model["vocab"])
    whole = bpe_tokenizers.build(byte_level=True, model=model)
    assert tokens(whole, "xylophonic")[1:] == ["xylophonic"]
    assert pieces.on_the_way(model)("xylophonic") == set()
    rows = whole(["xylophonic", *TEXTS[:5]])["input_ids"]
    smaller = cut(whole, rows, 0.6)
    for text in ("xylophonic", *TEXTS[:5]):
        assert tokens(smaller, text) == tokens(whole, text)
    assert len(tokens(cut(whole, whole(TEXTS[:5])["input_ids"], 0.6), "xylophonic")) > 2


@pytest.mark.parametrize("byte_level", BYTE_LEVEL)
def test_what_any_text_needs_stays_however_little_is_kept(byte_level: bool) -> None:
    whole = bpe_tokenizers.build(byte_level=byte_level)
    whole.add_tokens([AddedToken("<tag>", normalized=False)])
    least = cut(whole, [], 1e-9)
    bytes_of = {f"<0x{byte:02X}>" for byte in range(256)} if not byte_level else set()
    letters = {token for token in whole.get_vocab() if len(token) == 1}
    assert least.get_vocab().keys() >= {*bpe_tokenizers.SPECIAL, "<tag>", *bytes_of, *letters}
    assert len(letters) >= (256 if byte_level else 60)
    assert all(len(token) == 1 or token in {*bpe_tokenizers.SPECIAL, "<tag>", "<unk>", *bytes_of}
               for token in least.get_vocab())  # fmt: skip
    assert tokens(least, "a <tag>")[0] == "<s>"
    assert tokens(least, "a <tag>")[-1] == "<tag>"
    for text in (*ELSEWHERE, *TEXTS[:5]):
        assert bpe_tokenizers.decoded(least, text) == text


def test_the_smallest_pieces_of_words_have_their_prefix() -> None:
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": dict.fromkeys(["a", "##b", "##bc", "##", "[UNK]"], 0)}
    assert pieces.smallest(model) == {"a", "##b", "[UNK]"}
    assert pieces.smallest(model | {"type": "BPE"}) == {"a", "[UNK]"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "Unigram"}, "only WordPiece and BPE vocabularies can be cut, and the base model's is Unigram"),
        ({"type": "WordLevel"}, "only WordPiece and BPE vocabularies can be cut"),
        ({"dropout": 0.1}, "merges with dropout 0.1, which the base model's tokenizer has, cannot be cut"),
        ({"continuing_subword_prefix": "@@"}, "merges with continuing_subword_prefix '@@'"),
        ({"end_of_word_suffix": "</w>"}, "merges with end_of_word_suffix '</w>'"),
    ],
)
def test_what_cannot_be_cut_is_said(changes: dict[str, Any], said: str) -> None:
    assert pieces.objection(ABCD) == ""
    assert pieces.objection({"type": "WordPiece", "continuing_subword_prefix": "##"}) == ""
    assert pieces.objection({}) == "", "older files do not say what they are"
    assert pieces.objection(ABCD | changes).startswith(said)


def test_the_library_merges_as_the_proof_says() -> None:
    """The lowest rank first, of these the leftmost; a later merge of the same pair counts."""
    model = ABCD | {"vocab": ABCD["vocab"] | {"aa": 8}, "merges": [["a", "a"], *MERGES]}
    core = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    assert core.encode("aaab").tokens == ["aa", "ab"]
    assert core.encode("abcd").tokens == ["abcd"]
