"""A bundle that continues texts: by the tokens of transformers, in pieces, within its context, tried and in MLflow."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tasks import register
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Release
from tasks.engine import registry, tracking
from tasks.ml.data.datasets import Golden
from tasks.ml.graph import decoding
from tasks.ml.problems import causal_lm
from tasks.ml.quantization import cache_scales
from tasks.serving import completions, model, server, triton
from tasks.serving.predictor import Predictor, self_test
from tests.ml.tiny_decoders import VOCABULARY, model_of
from tests.ml.tiny_decoders import tokens as random_tokens
from tests.tasks.generating import CONTEXT, END, NEW_TOKENS, TEXTS, build, tokenizer_of
from tests.tasks.shippable import RECIPE


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("scribe"))


@torch.no_grad()
def generated(ids: list[int], new_tokens: int) -> list[int]:
    """The new tokens of transformers."""
    decoder: Any = model_of("llama")
    found = decoder.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=new_tokens, do_sample=False,
        eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    new: list[int] = found[0, len(ids) :].tolist()
    return new


def test_texts_are_continued_by_the_tokens_of_transformers(predictor: Predictor) -> None:
    answers = predictor.predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        (ids,) = predictor.encode([text])
        expected = generated(ids, NEW_TOKENS)
        found = [token for token, _ in predictor.answers.generate(predictor, ids, NEW_TOKENS)]  # type: ignore[union-attr]
        assert found == expected
        kept = [token for token in expected if token != END]
        assert answer == {"completion": predictor.decode(kept), "tokens": len(expected)}
    assert len({answer["completion"] for answer in answers}) == len(TEXTS)


def test_a_prompt_that_is_read_in_parts_is_continued_the_same(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictor.predict(TEXTS[:2])
    steps: list[int] = []
    found = predictor.answers.generate.__globals__  # type: ignore[union-attr]  # the module that the predictor loaded
    step = found["_step"]
    monkeypatch.setitem(found, "PREFILL", 5)
    monkeypatch.setitem(found, "_step", lambda session, new, *rest: steps.append(len(new)) or step(session, new, *rest))
    assert predictor.predict(TEXTS[:2]) == whole
    assert max(steps) == 5 < completions.PREFILL


def test_generation_ends_with_a_token_that_ends_it_and_with_the_context(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ids,) = predictor.encode([TEXTS[0]])
    new = generated(ids, 5)
    assert new[3] not in new[:3]
    monkeypatch.setattr(predictor.answers, "ends", frozenset([new[3]]))
    assert predictor.predict([TEXTS[0]]) == [{"completion": predictor.decode(new[:3]), "tokens": 4}]
    monkeypatch.undo()
    (answer,) = predictor.predict(["x" * (CONTEXT - 4)])  # and <s>
    assert answer["tokens"] == 3
    (answer,) = predictor.predict([TEXTS[0]], new_tokens=2)
    assert answer["tokens"] == 2


@pytest.mark.parametrize("new_tokens", [0, -1, True, 2.0, "3"])
def test_a_number_of_new_tokens_that_is_none_is_refused(predictor: Predictor, new_tokens: Any) -> None:
    with pytest.raises(ValueError, match="new_tokens: a whole number of at least 1 is wanted"):
        predictor.predict(["dull"], new_tokens=new_tokens)


def test_what_leaves_no_room_or_is_no_text_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: the text has 64 tokens .* at most 63, .* may have 64 together"):
        predictor.predict(["fine", "x" * (CONTEXT - 1)])
    with pytest.raises(ValueError, match="row 1: text must be a string, not float"):
        predictor.require(["fine", float("nan")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="row 0: the text has 64 tokens"):
        predictor.stream("x" * (CONTEXT - 1))  # before anything is asked of the stream
    assert predictor.predict([""], new_tokens=1)[0]["tokens"] == 1  # <s> is a token
    bare = Predictor(build(tmp_path, tokenizer=tokenizer_of(begins=False)))
    with pytest.raises(ValueError, match="row 0: the tokenizer makes no token of this text"):
        bare.predict([""])


def test_pieces_of_a_stream_are_the_completion(predictor: Predictor) -> None:
    for text in TEXTS:
        pieces = list(predictor.stream(text))
        (answer,) = predictor.predict([text])
        assert "".join(pieces) == answer["completion"]
        assert all(pieces)


def test_a_stream_is_computed_as_it_is_read(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    generate = predictor.answers.generate  # type: ignore[union-attr]

    def counted(*arguments: Any) -> Iterator[Any]:
        for token, logits in generate(*arguments):
            computed.append(token)
            yield token, logits

    monkeypatch.setattr(predictor.answers, "generate", counted)
    stream = predictor.stream(TEXTS[0])
    assert computed == []
    next(stream)
    assert 1 <= len(computed) < NEW_TOKENS


def forced(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, ids: list[int]) -> None:
    monkeypatch.setattr(predictor.answers, "generate", lambda *_: ((token, np.zeros(1)) for token in ids))


def test_characters_of_several_tokens_come_whole(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    (ids,) = predictor.encode([" 5 € é"])
    forced(monkeypatch, predictor, ids[1:])
    assert list(predictor.stream("dull")) == [" ", "5", " ", "€", " ", "é"]
    forced(monkeypatch, predictor, ids[1:-1])  # ends within é
    assert list(predictor.stream("dull")) == [" ", "5", " ", "€", " ", "\ufffd"]
    assert predictor.predict(["dull"]) == [{"completion": " 5 € \ufffd", "tokens": len(ids) - 2}]


def test_the_space_between_a_text_and_its_completion_is_kept(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Tokenizer(models.WordLevel({"a": 0, "great": 1, "film": 3}, unk_token="a"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.model = models.WordLevel({"▁a": 0, "▁great": 1, "▁film": 3}, unk_token="▁a")
    monkeypatch.setattr(predictor, "tokenizer", core)
    forced(monkeypatch, predictor, [1, 3])
    assert list(predictor.stream("a")) == [" great", " film"]


def test_a_cache_in_int8_is_started_in_int8(tmp_path: Path) -> None:
    decoder = model_of("llama")
    scales = cache_scales.of_rows(decoder, [random_tokens()])
    graph = decoding.Builder(decoder, weights={}, cache_scales=scales).build()
    serving = build(tmp_path, graph=graph)
    assert Predictor(serving).predict(["dull"])[0]["tokens"] == NEW_TOKENS
    assert self_test_passes(serving)


def self_test_passes(serving: Path) -> bool:
    """Whether a bundle tests itself, in a process without torch."""
    command = [sys.executable, "-I", "predictor.py", "--self-test"]
    done = subprocess.run(command, cwd=serving, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    return bool(json.loads(done.stdout)["max_abs_error"] < 0.01)


def test_the_bundle_says_what_it_is(serving: Path) -> None:
    manifest = json.loads((serving / "manifest.json").read_text())
    assert manifest["answer"] == {"kind": "completion", "ends": [END], "new_tokens": NEW_TOKENS, "context": CONTEXT}
    assert manifest["max_length"] == CONTEXT
    assert manifest["batch_invariant"] is True
    assert manifest["inputs"][2] == {
        "name": "past_key_values.0.key", "dtype": "float32", "shape": ["batch", 2, "past", 16],
    }  # fmt: skip
    assert manifest["outputs"][0] == {
        "name": "logits", "dtype": "float32", "shape": ["batch", "sequence", VOCABULARY],
    }  # fmt: skip
    assert set(manifest["files"]) == {
        "model.onnx", "tokenizer.json", "golden.json", "predictor.py", "completions.py", "README.md",
        "genai_config.json", "tokenizer_config.json",
    }  # fmt: skip
    shipped = Tokenizer.from_file(str(serving / "tokenizer.json"))
    assert shipped.truncation is None
    assert shipped.padding is None


def test_golden_rows_are_texts_that_can_be_continued(serving: Path, tmp_path: Path) -> None:
    golden = json.loads((serving / "golden.json").read_text())
    assert [row["text"] for row in golden][:-1] == [*TEXTS, ""]
    assert " ".join(TEXTS).startswith(golden[-1]["text"])
    assert len(golden[-1]["input_ids"]) == CONTEXT - completions.GOLDEN_TOKENS
    for row in golden:
        assert row["output_ids"] == generated(row["input_ids"], completions.GOLDEN_TOKENS)
        assert len(row["margins"]) == row["tokens"] == len(row["output_ids"])
        assert min(row["margins"]) > 0
    bare = build(tmp_path / "bare", tokenizer=tokenizer_of(begins=False))
    assert "" not in [row["text"] for row in json.loads((bare / "golden.json").read_text())]
    with pytest.raises(FeatherweightError, match="can answer none of 1 golden texts"):
        build(tmp_path / "none", tokenizer=tokenizer_of(begins=False), golden=[Golden("", [])])


def rewritten(serving: Path, folder: Path, change: Any) -> Path:
    """A copy of a bundle, whose golden rows were changed, and which has their digest."""
    folder.mkdir()
    for path in serving.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    golden = json.loads((folder / "golden.json").read_text())
    change(golden)
    content = json.dumps(golden).encode()
    (folder / "golden.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["golden.json"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def firmest(golden: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The row and place of the token that is the furthest from a tie."""
    places = [(row, place) for row in golden for place in range(row["tokens"])]
    return max(places, key=lambda one: one[0]["margins"][one[1]])


def test_the_self_test_passes_and_leaves_nothing(serving: Path) -> None:
    assert self_test_passes(serving)
    manifest = json.loads((serving / "manifest.json").read_text())
    assert {path.name for path in serving.iterdir()} == {*manifest["files"], "manifest.json"}


def test_the_self_test_finds_another_token(serving: Path, tmp_path: Path) -> None:
    def change(golden: list[dict[str, Any]]) -> None:
        row, place = firmest(golden)
        assert row["margins"][place] > completions.NEAR_TIE
        row["output_ids"][place] ^= 1

    folder = rewritten(serving, tmp_path / "changed", change)
    with pytest.raises(RuntimeError, match=r"golden row \d: expected the new tokens"):
        self_test(folder)


def test_the_self_test_finds_another_text(serving: Path, tmp_path: Path) -> None:
    def change(golden: list[dict[str, Any]]) -> None:
        golden[2]["completion"] += "!"

    with pytest.raises(RuntimeError, match=r"golden row 2: expected 8 tokens and '.*!', found 8"):
        self_test(rewritten(serving, tmp_path / "changed", change))


def test_a_near_tie_may_fall_otherwise_and_what_follows_is_another_text(predictor: Predictor, serving: Path) -> None:
    """A golden row of a processor on which the second best token was the best one."""
    golden = json.loads((serving / "golden.json").read_text())
    row = min(golden, key=lambda one: one["margins"][0])
    ((best, logits),) = predictor.answers.generate(predictor, row["input_ids"], 1)  # type: ignore[union-attr]
    second = int(np.argsort(logits)[-2])
    change = completions.NEAR_TIE - float(logits[best] - logits[second])
    assert change > 0.02
    elsewhere = row | {"output_ids": [second, 5, 5], "completion": "?", "tokens": 3}
    check = predictor.answers.check
    assert check(predictor, elsewhere | {"margins": [change - 0.01, 9, 9]}) == pytest.approx(0.49, abs=1e-4)
    with pytest.raises(RuntimeError, match="expected the new tokens"):
        check(predictor, elsewhere | {"margins": [change + 0.01, 9, 9]})


def test_a_tokenizer_that_reads_otherwise_than_in_training_is_not_shipped(tmp_path: Path) -> None:
    tokens = tokenizer_of().encode(TEXTS[0]).tokens
    part = Golden(TEXTS[0], ["<s>", "Ġ", *tokens[1:-1]])  # which follows a space, and ends amid a word
    build(tmp_path / "part", golden=[part])
    with pytest.raises(FeatherweightError, match=r"22 tokens \(<s> t h e .*\), but the model learned it as 21 tokens"):
        build(tmp_path / "other", golden=[Golden(TEXTS[0], [*tokens[:11], *tokens[12:]])])


def test_what_the_problem_leaves_open_is_that_of_the_exported_description(tmp_path: Path) -> None:
    manifest = json.loads((build(tmp_path / "open", answer=causal_lm.answer([], {})) / "manifest.json").read_text())
    assert manifest["answer"] == {
        "kind": "completion", "new_tokens": causal_lm.NEW_TOKENS, "ends": [END], "context": CONTEXT,
    }  # fmt: skip
    with pytest.raises(FeatherweightError, match=r"has 'ends' nor the exported genai_config.json 'eos_token_id'"):
        build(tmp_path / "unknown", answer=causal_lm.answer([], {}), describes=False)


def test_the_snippet_on_the_card_runs_with_onnxruntime_and_tokenizers_alone(serving: Path) -> None:
    card = (serving / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    check = "\nimport sys; assert not {'torch', 'transformers', 'mlflow', 'tasks'} & set(sys.modules)\n"
    command = [sys.executable, "-B", "-c", snippet + check]
    done = subprocess.run(command, cwd=serving, capture_output=True, text=True, check=True)
    (answer,) = Predictor(serving).predict(["an utter delight"], new_tokens=16)
    assert done.stdout == f"{answer}\n{answer['completion']}"
    for words in ("Continues each text, by its likeliest next token", "at most 64 tokens together", "completions.py"):
        assert words in card
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)


def test_it_answers_on_the_command_line_and_refuses_in_a_sentence(serving: Path) -> None:
    command = [sys.executable, "-I", "-B", "predictor.py"]
    done = subprocess.run([*command, "dull"], cwd=serving, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == Predictor(serving).predict(["dull"])[0]
    done = subprocess.run([*command, "x" * 99], cwd=serving, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("row 0: the text has 100 tokens")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def installed(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    return model.installed(serving, [path.name for path in serving.iterdir()], folder)


def test_mlflow_answers_streams_and_takes_a_number_of_new_tokens(installed: Path, predictor: Predictor) -> None:
    loaded = mlflow.pyfunc.load_model(str(installed))
    assert loaded.metadata.signature.to_dict()["params"] == json.dumps(
        [{"name": "new_tokens", "default": NEW_TOKENS, "shape": None, "type": "integer"}]
    )
    assert [(one.name, one.type.name) for one in loaded.metadata.get_output_schema()] == [
        ("completion", "string"),
        ("tokens", "long"),
    ]
    answers = loaded.predict([{"text": text} for text in TEXTS])
    assert answers.to_dict(orient="records") == predictor.predict(TEXTS)
    assert loaded.predict([{"text": "dull"}], params={"new_tokens": 3})["tokens"].tolist() == [3]
    pieces = list(loaded.predict_stream({"text": TEXTS[0]}, params={"new_tokens": 5}))
    assert pieces == list(predictor.stream(TEXTS[0], new_tokens=5))
    assert len(pieces) > 1


def test_triton_is_refused(serving: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match="--to triton: scribe continues texts token by token with a cache"):
        triton.write(serving, tmp_path / "repository", "scribe", 1)
    assert not (tmp_path / "repository").exists()


def post(app: Any, document: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/invocations", json=document)

    return asyncio.run(run())


def test_the_scoring_server_continues_texts_one_by_one(installed: Path, predictor: Predictor) -> None:
    app = server.application(str(installed))
    asked: list[int] = []
    predict = app.predict
    app.predict = lambda texts, **options: asked.append(len(texts)) or predict(texts, **options)  # type: ignore[func-returns-value]
    answer = post(app, {"inputs": TEXTS, "params": {"new_tokens": 3}})
    assert answer.json() == {"predictions": predictor.predict(TEXTS, new_tokens=3)}
    assert asked == [1] * len(TEXTS)
    document = {"dataframe_records": [{"text": text} for text in TEXTS]}
    assert post(app, document).json() == post(app.inner, document).json() == {"predictions": predictor.predict(TEXTS)}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": ["dull", "x" * 99]}, "row 1: the text has 100 tokens and leaves no room"),
        ({"inputs": ["dull"], "params": {"new_tokens": 0}}, "params: new_tokens must be a whole number of at least 1"),
        ({"inputs": ["dull"], "params": {"top_k": 3}}, "params: an object with new_tokens is wanted"),
    ],
)
def test_the_scoring_server_refuses_in_a_sentence(installed: Path, document: Any, message: str) -> None:
    app = server.application(str(installed))
    app.predict = lambda *_, **__: pytest.fail("nothing is generated before all of a request is checked")
    answer = post(app, document)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(message)


def test_what_is_logged_in_mlflow_tests_itself_answers_and_streams(
    serving: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tracking.pipeline_run("scribe", RECIPE, run_name="first") as run_id:
        loaded = mlflow.pyfunc.load_model(f"models:/{register._log_model(serving, {}, run_id)}")
    assert "".join(loaded.predict_stream({"text": "dull"})) == loaded.predict([{"text": "dull"}])["completion"][0]
    release = Release(name="scribe", version=1, digest="0" * 64, model_uri="models:/scribe/1")
    assert registry.self_test(serving, release)["golden_rows"] == len(json.loads((serving / "golden.json").read_text()))
