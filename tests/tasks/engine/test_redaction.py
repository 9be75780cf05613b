"""Planted credentials: whatever an address or a secret is told by, it does not get out."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client

from flows.flow import flow
from tasks.contracts.base import FeatherweightError
from tasks.engine import redaction, tracking
from tasks.engine.step import step
from tests.tasks import tiny_stages

CANARY = "canary-of-the-test"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://team:p%40{CANARY}@db/prefect")


@pytest.fixture
def records() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    redaction.watch_logs()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("planted")
def test_text_loses_credentials_and_nothing_else() -> None:
    for text, clean in {
        f"GET http://user:{CANARY}@host:5000/api failed": "GET http://***@host:5000/api failed",
        "cannot open postgresql://a:b@db/x, nor https://token@host": (
            "cannot open postgresql://***@db/x, nor https://***@host"
        ),
        f"'{CANARY}' is not right": "'***' is not right",
        f"p@{CANARY} was decoded": "*** was decoded",
        "write to a@b.example, see http://host/a@b": "write to a@b.example, see http://host/a@b",
    }.items():
        assert redaction.hide(text) == clean


class TemplateError(Exception):
    """One that makes its message of its arguments, as jinja2 does."""

    @property
    def message(self) -> str:
        return str(self.args[0])


@pytest.mark.usefixtures("planted")
def test_an_error_whose_message_cannot_be_set_stays_itself() -> None:
    error = TemplateError(f"no {CANARY}")
    redaction.cleanse(error)
    assert (error.message, str(error)) == ("no ***", "no ***")


def test_http_addresses_hand_their_credentials_to_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:p%2F{CANARY}@mlflow.example/base")
    monkeypatch.setenv("PREFECT_API_URL", f"http://team:{CANARY}@[::1]:4200/api")
    assert tracking.tracking_uri() == "https://mlflow.example/base"
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", f"p/{CANARY}")
    assert os.environ["PREFECT_API_URL"] == "http://[::1]:4200/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == f"team:{CANARY}"


@pytest.mark.usefixtures("planted", "records")
def test_a_log_record_of_any_library_has_none(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    try:
        raise OSError(f"no answer from http://me:{CANARY}@host")
    except OSError:
        logger.exception("asking %s", f"http://me:{CANARY}@host")
    logger.warning("%d of %d", 3, 4)
    assert CANARY not in caplog.text
    assert "no answer from http://***@host" in caplog.text
    assert caplog.records[-1].args == (3, 4), "what is innocent is left as it was"


@pytest.mark.usefixtures("records")
def test_of_an_error_that_the_user_can_mend_a_log_has_the_sentence_and_of_others_the_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for error in (FeatherweightError("no such file"), OSError("cut off")):
        try:
            raise error
        except (FeatherweightError, OSError):
            logging.getLogger("prefect.flow_runs").exception("Encountered %r", error)
    mendable, other = caplog.text.split("ERROR")[1:]
    assert "no such file" in mendable
    assert "Traceback" not in mendable
    assert "Traceback" in other


def test_a_worker_that_imports_a_flow_logs_like_that_before_the_flow_begins() -> None:
    code = "import logging, flows; print(logging.getLogRecordFactory().__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tasks.engine.redaction"


@pytest.mark.usefixtures("planted")
def test_the_last_look_at_a_line_sees_tracebacks_too() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(redaction.Formatter("%(message)s"))
    record = logging.LogRecord("a", logging.ERROR, "p", 1, "failed", (), None)
    record.exc_text = f"OSError: http://me:{CANARY}@host"
    handler.emit(record)
    assert stream.getvalue() == "failed\nOSError: http://***@host\n"


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("place", ["flow", "step"])
def test_prefect_is_told_of_a_failure_without_them(place: str) -> None:
    """Also where nothing in MLflow is open, as when its database does not answer."""

    def refuse() -> None:
        raise ConnectionError(f"cannot open postgresql://team:{CANARY}@db/mlflow") from OSError(CANARY)

    asked = step(name="asked")(refuse)
    state = asked(return_state=True) if place == "step" else flow(name="asking")(refuse)(return_state=True)
    details = state.state_details
    with get_client(sync_client=True) as client:
        step_or_flow = {"step": tiny_stages.recorded, "flow": client.read_flow_run}
        told = step_or_flow[place](details.task_run_id or details.flow_run_id)
    assert told.state is not None
    assert told.state.is_failed()
    assert "cannot open postgresql://***@db/mlflow" in str(told.state.message)
    assert CANARY not in told.model_dump_json()


@pytest.mark.usefixtures("planted")
def test_a_run_in_mlflow_and_the_error_that_goes_on_have_none() -> None:
    def fail() -> None:
        with tracking.pipeline_run("a", {"url": f"http://x:{CANARY}@h"}, run_name="r"):
            raise RuntimeError(f"{CANARY} was refused") from OSError(f"http://me:{CANARY}@host")

    with pytest.raises(RuntimeError) as raised:
        fail()
    (run,) = tracking.find_runs("", names=["a"])
    assert run.data.tags[tracking.ERROR_TAG] == "RuntimeError: *** was refused"
    assert CANARY not in str(run.to_dictionary())
    assert str(raised.value) == "*** was refused"
    assert str(raised.value.__cause__) == "http://***@host"
