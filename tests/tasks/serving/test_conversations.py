"""A bundle that answers in conversations: by the template as transformers renders it, to the end of the turn."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tasks import register
from tasks.engine import tracking
from tasks.ml.data.datasets import Golden
from tasks.ml.problem import Answer
from tasks.serving import completions, model, server
from tasks.serving.predictor import Predictor
from tests.ml import chats
from tests.tasks.generating import CONTEXT, END, NEW_TOKENS, build, tokenizer_of
from tests.tasks.shippable import RECIPE

TALK = [
    {"role": "user", "content": "Good, or not? <b>ü</b>"},
    {"role": "assistant", "content": " Well. "},
    {"role": "user", "content": "Say."},
]
ASKED = [[{"role": "user", "content": text}] for text in ("Good?", "Dull? It was.", "A film")]
TEMPLATES = [chats.CHATML, chats.SMOLLM2, chats.LLAMA3, chats.MISTRAL, chats.GEMMA, chats.PLAIN, chats.THINKING]
ODD = (
    "{%- for m in messages -%}\n  {%- if m.role == 'user' %}\n{{ m | tojson }}\n  {%- endif %}\n"
    "{% generation %}{{ m.content }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}\n"
    "{{ tools is none }} {{ documents is none }} {{ unk_token is defined }} {{ strftime_now('%Y') }}"
)
"""All that transformers gives to a template."""
SHORT = "{{ bos_token }}{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"


@pytest.mark.parametrize("template", [*TEMPLATES, ODD])
@pytest.mark.parametrize("asks", [True, False])
def test_messages_are_rendered_as_by_transformers(template: str, asks: bool) -> None:
    theirs = chats.tokenizer(template)
    chat = {"template": template, "special_tokens": theirs.special_tokens_map}
    manifest = {"answer": {"chat": chat, "ends": [1], "context": 64, "new_tokens": 4}}
    ours = completions.Conversations(manifest)
    expected = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=asks)
    assert ours.render(TALK, asks=asks) == expected


def settings(folder: Path, template: str) -> None:
    """What the export leaves of a tokenizer with a template."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = template
    made.save_pretrained(folder)


def serving_of(folder: Path, template: str = SHORT, **changes: Any) -> Path:
    core: Tokenizer = tokenizer_of()
    source = folder / "settings"
    source.mkdir(parents=True)
    settings(source, template)
    chat = completions.compiled(template)
    golden = []
    for asked in ASKED:
        text = chat.render(messages=asked, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        golden.append(Golden(asked, core.encode(text, add_special_tokens=False).tokens))
    return build(folder / "bundle", golden=golden, companions=source, **changes)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_of(tmp_path_factory.mktemp("assistant"))


def test_an_answer_continues_what_the_template_writes(predictor: Predictor) -> None:
    answers = predictor.predict(ASKED)
    for asked, answer in zip(ASKED, answers, strict=True):
        ids = predictor.tokenizer.encode("<s>" + asked[0]["content"] + "</s>", add_special_tokens=False).ids
        assert ids.count(1) == 1, "one first token"
        new = [token for token, _ in predictor.answers.generate(predictor, ids, NEW_TOKENS)]  # type: ignore[union-attr]
        assert answer["tokens"] == len(new)
        assert answer["completion"] == predictor.decode([token for token in new if token != END])
        assert "".join(predictor.stream(asked)) == answer["completion"]


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    """Also where the model's configuration names another token."""
    answer = Answer("completion", [], "Continues each text", {"ends": [0], "new_tokens": 4, "context": CONTEXT})
    manifest = json.loads((serving_of(tmp_path, answer=answer) / "manifest.json").read_text())
    assert manifest["answer"]["ends"] == [0, END]
    assert manifest["answer"]["chat"]["template"] == SHORT
    assert manifest["answer"]["chat"]["special_tokens"]["bos_token"] == "<s>"


def test_golden_rows_are_conversations_and_the_bundle_tests_itself(serving: Path) -> None:
    golden = json.loads((serving / "golden.json").read_text())
    assert [row["messages"] for row in golden] == ASKED
    done = subprocess.run(
        [sys.executable, "-I", "-B", "predictor.py", "--self-test"],
        cwd=serving,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["golden_rows"] == len(ASKED)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Good?", "row 0: messages must be a list of objects with role and content"),
        ([], "row 0: messages must be a list"),
        ([{"role": "user", "content": 3}], "row 0: messages must be a list"),
        ([{"role": "user", "content": "x" * CONTEXT}], "row 0: the text has 66 tokens and leaves no room"),
    ],
)
def test_what_is_no_conversation_is_refused(predictor: Predictor, messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predictor.predict([messages])


def test_a_template_that_refuses_says_so() -> None:
    found = completions.Conversations({
        "answer": {"chat": {"template": chats.GEMMA, "special_tokens": {"bos_token": "<s>"}}, "ends": [1],
                   "context": 9, "new_tokens": 1}
    })  # fmt: skip
    with pytest.raises(ValueError, match="row 3: the chat template cannot write these messages: System role not supp"):
        found.render([{"role": "system", "content": "x"}], 3)


def test_what_is_said_on_the_command_line_is_the_users_and_the_card_runs(serving: Path) -> None:
    command = [sys.executable, "-I", "-B", "predictor.py", ASKED[0][0]["content"]]
    done = subprocess.run(command, cwd=serving, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == Predictor(serving).predict(ASKED[:1])[0]
    card = (serving / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    check = "\nimport sys; assert not {'torch', 'transformers', 'mlflow', 'tasks'} & set(sys.modules)\n"
    subprocess.run(
        [sys.executable, "-B", "-c", snippet + check], cwd=serving, capture_output=True, text=True, check=True
    )
    assert "numpy jinja2" in card
    assert '[{"messages": [{"role": "user"' in card


def test_mlflow_takes_messages_and_streams(serving: Path, predictor: Predictor, tmp_path: Path) -> None:
    installed = model.installed(serving, [path.name for path in serving.iterdir()], tmp_path)
    loaded = mlflow.pyfunc.load_model(str(installed))
    assert loaded.metadata.get_input_schema().input_names() == ["messages"]
    expected = predictor.predict(ASKED)
    assert loaded.predict([{"messages": asked} for asked in ASKED]).to_dict(orient="records") == expected
    assert "".join(loaded.predict_stream({"messages": ASKED[0]})) == expected[0]["completion"]
    app = server.application(str(installed))
    records = {"dataframe_records": [{"messages": asked} for asked in ASKED]}
    assert post(app, records).json() == post(app.inner, records).json() == {"predictions": expected}
    assert post(app, {"inputs": {"messages": ASKED[0]}}).json() == {"predictions": expected[:1]}
    refused = post(app, {"dataframe_records": [{"messages": "Good?"}]})
    assert (refused.status_code, refused.json()["message"]) == (
        400, "row 0: messages must be a list of objects with role and content, which are strings"
    )  # fmt: skip


def post(app: Any, document: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/invocations", json=document)

    return asyncio.run(run())


def test_it_is_logged_with_an_example(serving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.pipeline_run("assistant", RECIPE, run_name="first") as run_id:
        loaded = mlflow.pyfunc.load_model(f"models:/{register._log_model(serving, {}, run_id)}")
    assert loaded.predict([{"messages": ASKED[0]}])["tokens"][0] >= 1
