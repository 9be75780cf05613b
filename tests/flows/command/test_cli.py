"""The command as people run it: a process, its standard output, its standard error, and its exit status."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import yaml

from flows.command import cli, commands, console, history, recipe_files, running, serving
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle, Check, CheckStatus, Outcome, Release, Scorecard, StageResult, Verdict
from tasks.engine import store, tracking
from tasks.ml import machine
from tests.flows import tiny_recipes

ROOT = Path(__file__).parents[3]


def featherweight(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.command.cli", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def process(*arguments: str) -> subprocess.Popen[str]:
    """The command as a person starts it: tests in the background of a shell are deaf to SIGINT, and so is what they
    start."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.command.cli", *arguments],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def outcome(run_id: str, status: CheckStatus = CheckStatus.PASSED) -> Outcome:
    with store.workspace() as directory:
        (directory / "model.onnx").write_bytes(b"onnx")
        digest = store.publish(directory)
    check = Check(
        name="quality_drop", measured=0.004, low=-0.01, high=0.012, limit=0.015, direction="at_most", n=2121,
        status=status, explanation="accuracy fell by 0.4 points",
    )  # fmt: skip
    stage = StageResult(
        stage="train", run_id="child", cached=True, seconds=3.5, scorecard=Scorecard(quality=0.86, size_mb=90.9),
        bundle=Bundle(digest=digest, format="torch", problem="text-classification"),
    )  # fmt: skip
    passed = status is CheckStatus.PASSED
    release = Release(name="films", version=3, digest=digest, model_uri="models:/m-1") if passed else None
    return Outcome(recipe="films", run_id=run_id, verdict=Verdict(checks=(check,)), stages=(stage,), release=release)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A recipe, as a file, whose steps take milliseconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipes.write(tmp_path).model_dump(mode="json")), encoding="utf-8")
    return str(path)


def record(status: CheckStatus = CheckStatus.PASSED) -> Outcome:
    """Leaves in MLflow what a finished run leaves there."""
    with tracking.pipeline_run("films", {"name": "films"}, run_name="compress-films") as run_id:
        value = outcome(run_id, status)
        tracking.Run(run_id).text(value.model_dump_json(), "outcome.json")
        tracking.Run(run_id).tags({"featherweight.verdict": value.verdict.status})
    return value


def test_help_needs_the_interpreter_and_cyclopts_only() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flows.command.cli", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in (
        "demo",
        "init",
        "compress",
        "runs",
        "show",
        "up",
        "promote",
        "rollback",
        "serve",
        "deploy",
        "study",
        "ablate",
        "xray",
        "gc",
        "doctor",
    ):
        assert f"│ {command} " in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "cyclopts" in imported
    assert not imported & {"torch", "transformers", "prefect", "mlflow", "pydantic", "numpy", "yaml"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compress", "no-such-recipe"], "recipe 'no-such-recipe': no ready recipe and no file has this name"),
        (["compress", "../demo"], "recipe '../demo': no such file"),
        (["compress", "http://me:canary@host/a.yaml"], "recipe 'http://***@host/a.yaml' is an address; recipes are"),
        (["rollback", "a\udcff"], "Invalid text 'a\\udcff': it is not UTF-8"),
        (["demo", "--set", "training.epochs=0"], "recipe demo: training.epochs: must be greater than 0 (got 0)"),
        (["demo", "--set", "training.epoch=1"], "recipe demo: training: unknown key 'epoch'; did you mean 'epochs'?"),
        (["show", "abc"], "no run's id begins with 'abc'"),
        (["show"], "no recipe was run yet"),
        (["xray", "./nowhere"], "xray: directory './nowhere' does not exist"),
        (["xray", "flows"], "xray: 'flows' has no config.json in flows"),
        (["xray", ".", "--batch", "0"], "--batch '0': write whole numbers above 0"),
        (
            ["xray", ".", "--seconds", "1e300"],
            "Invalid value for --seconds: must be a number above 0, and at most 3600, not '1e",
        ),
        (["study", "nothing"], "recipe 'nothing': no ready recipe and no file has this name"),
        (
            ["study", "--target-accuracy", "1.5"],
            "Invalid value for --target-accuracy: must be a number from 0 to 1, not '1.5'",
        ),
        (
            ["ablate", "smoke", "--seeds", "0"],
            "Invalid value for --seeds: must be a whole number from 1 to 1000000, not '0'",
        ),
        (
            ["ablate", "smoke", "--techniques", "labels,magic"],
            "ablation: techniques: 'magic' is not known; choose among hidden states",
        ),
        (["study", "--output", "nowhere/x.html"], "--output nowhere/x.html: there is no directory"),
        (["xray", ".", "--output", "nowhere/x.html"], "--output nowhere/x.html: there is no directory"),
        (["xray", ".", "--output", "no\nwhere\x1b\udcff/x.html"], "--output no where\ufffd\ufffd/x.html: there is no"),
        (
            ["xray", ".", "--output", os.devnull],
            "--output /dev/null: this is no file that a page could take the place of",
        ),
        (
            ["xray", ".", "--output", "/proc/self/x.html"],
            "--output /proc/self/x.html: nothing can be written to /proc/self",
        ),
        (["xray", "x/y" * 9000], "xray: 'x/yx/y"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], expected: str, home: Path) -> None:
    done = featherweight(*arguments, "--json")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"featherweight: {expected}")
    assert len(lines[0]) < 1100
    if not expected.startswith("Invalid "):  # of what cannot be read, that a document was asked for is not known
        assert json.loads(done.stdout) == {"error": lines[0].removeprefix("featherweight: "), "exit_status": 2}
    assert not (home / "store" / "objects").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "a command is missing; see 'featherweight --help'"),
        (["serv"], 'Unknown command "serv". Did you mean "serve"? '),
        (["runs", "--lim", "3"], "Unknown option: --lim. Did you mean --limit?; see 'featherweight runs --help'"),
        (["runs", "--limit", "1.5"], "Invalid value for --limit: must be a whole number from 1 to 1000000, not '1.5'"),
        (["runs", "--limit", "1", "--limit", "0x2"], "Invalid value for --limit: must be a whole number"),
        (["runs", "--no-json"], "Unknown option: --no-json."),
        (
            ["search", "smoke", "--minimize", "none"],
            'Invalid value "none" for --minimize. Choose from: "latency", "size"',
        ),
        (["promote"], 'Command "promote" parameter NAME requires an argument'),
        (["promote", "films", "--version"], 'Command "promote" parameter --version requires an argument'),
        (["rollback", "films", "--version", "3"], "Unknown option: --version"),
        (
            ["deploy", "films", "--to", "triton"],
            'Command "deploy" parameter --to requires 2 positional arguments. Only',
        ),
        (["show", "one", "two"], "Unused Tokens: ['two']"),
    ],
)
def test_what_cannot_be_read_is_named(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.read(arguments)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"featherweight: {expected}")


def test_the_shell_completes_commands_options_choices_and_ready_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    script = commands.app.generate_completion(shell="bash")
    for word in ("rollback", "--dask-address", "nsga2"):
        assert word in script
    assert cli.main(["__complete", "compress", ""]) == 0
    assert capsys.readouterr().out.split()[-4:] == ["demo", "smoke", "smoke-lm", "smollm2"]


def test_xray_prints_tables_or_json_and_writes_a_page(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 99, "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    page = tmp_path / "page.html"
    asked = ("xray", str(tmp_path / "tiny"), "--batch", "2", "--length", "16", "--seconds", "0.01")
    done = featherweight(*asked, "--output", str(page), "--json")
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stderr, "what a library says to itself as it is imported"
    document = json.loads(done.stdout)
    assert document["model"] == "tiny"
    assert document["page"] == str(page)
    weights = 99 * 64 * 2 + 64 + 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64)
    assert document["parameters"] == weights
    cell = document["cells"][0]
    assert cell["seconds"] > 0
    assert cell["flops"] == sum(row["flops"] for row in cell["components"])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h1>tiny</h1>" in text


LISTEN_IN = """
import sys
def listen(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open({log!r}, "a") as log:
            print(event, *details[1:] if event != "socket.getaddrinfo" else details[:1], file=log)
sys.addaudithook(listen)
"""


def test_bad_data_is_one_line_before_any_training_and_nothing_calls_home(home: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,1\n,0\n", encoding="utf-8")
    calls = tmp_path / "calls.txt"
    (tmp_path / "sitecustomize.py").write_text(LISTEN_IN.format(log=str(calls)), encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path), "CI": ""}  # Prefect's analytics stay off in CI of their own accord
    done = featherweight("compress", "smoke", "--set", f"data.source=file:{rows}", "--json", **environment)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("featherweight: ")]
    assert len(said) == 1
    assert json.loads(done.stdout) == {"error": said[0].removeprefix("featherweight: "), "exit_status": 2}
    assert "rows.csv" in said[0]
    assert "Traceback" not in done.stderr
    assert tracking.find_runs("tags.`featherweight.kind` = 'pipeline'")[0].info.status == "FAILED"
    assert not list((home / "store" / "tmp").iterdir())
    heard = calls.read_text(encoding="utf-8").splitlines()
    assert heard
    assert [call for call in heard if "127.0.0.1" not in call] == []


def test_a_server_that_is_not_there_is_said() -> None:
    environment = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = featherweight("compress", "smoke", **environment)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("featherweight: PREFECT_API_URL: http://127.0.0.1:9/api does not answer: ")


class _Locked(http.server.BaseHTTPRequestHandler):
    """A Prefect server whose password the client lacks."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_wants_a_password_is_said() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = featherweight("promote", "films", PREFECT_API_URL=f"http://127.0.0.1:{server.server_address[1]}/api")
        server.shutdown()
    assert done.returncode == 2
    assert done.stderr.count("featherweight: ") == 1
    assert "set PREFECT_API_AUTH_STRING" in done.stderr


@pytest.mark.parametrize("command", [("compress", "smoke"), ("doctor",), ("runs", "--json")], ids=str)
def test_credentials_of_the_tracking_server_stay_in_the_program(command: tuple[str, ...], home: Path) -> None:
    """A planted canary, on the way to a server that is not there: terminal, log, and Prefect's database."""
    canary = "canary-of-the-test"
    environment = {"MLFLOW_TRACKING_URI": f"http://me:{canary}@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = featherweight(*command, **environment)
    assert done.returncode == (1 if command == ("doctor",) else 2)
    said = " ".join((done.stdout + done.stderr).split())
    assert "MLFLOW_TRACKING_URI: http://127.0.0.1:9 cannot be used: Connection refused; mend it or start" in said
    assert canary not in done.stdout + done.stderr
    assert not [path for path in home.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


def test_who_interrupts_hears_of_stages_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "start_logging", lambda: None)
    for module, name in ((serving, "serve"), (running, "on_recipe"), (recipe_files, "read")):
        monkeypatch.setattr(module, name, interrupted)
    for words in (["serve", "films"], ["recipe", "show", "smoke"]):
        assert cli.main(words) == 130
        assert capsys.readouterr().err == "featherweight: interrupted\n"
    for words in (["search", "smoke"], ["study"], ["ablate", "smoke", "--techniques", "hidden states"]):
        assert cli.main(words) == 130
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("featherweight: interrupted; finished stages are kept")
        assert line.endswith(f"say again: {shlex.join(['featherweight', *words])}")
    cli.main(["compress", "smoke", "--set", f"name={'x' * 500}"])
    assert capsys.readouterr().err.endswith("x …, as before\n")


def test_who_reads_no_further_is_not_told_of_it() -> None:
    command = f"{sys.executable} -m flows.command.cli recipe show demo | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_a_run_is_told_how_it_goes_on_and_it_does(number: signal.Signals, tiny: str) -> None:
    words = ["compress", tiny, "--set", "training.epochs=500", "--json"]

    def begun(run: subprocess.Popen[str], evaluations: int) -> list[str]:
        """What a run says until it has evaluated so often; once it has saved after that, it goes on from there."""
        said: list[str] = []
        assert run.stderr is not None
        while sum("selection accuracy" in line for line in said) < evaluations:
            said.append(run.stderr.readline())
            assert said[-1], said
        return said

    with process(*words) as run:
        begun(run, 2)
        run.send_signal(number)
        out, err = run.communicate(timeout=120)
    last = err.splitlines()[-1]
    assert run.returncode == json.loads(out)["exit_status"] == 130
    assert last.endswith(f"say again: {shlex.join(['featherweight', *words])}")
    again = shlex.split(last.partition("say again: ")[2])[1:]
    with process(*again) as run:
        said = begun(run, 1)
        run.kill()
    assert any("prepare: Cached" in line for line in said), said
    assert any("train: resuming at step" in line for line in said), said


@pytest.mark.timeout(900)
def test_a_first_run_says_only_what_a_person_needs(home: Path, tiny: str) -> None:
    """On a terminal, with nothing set: what libraries say while they are imported and databases are made is no news."""
    (home / "mlflow.db").unlink()  # which the tests have prepared
    given = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    terminal, other_end = os.openpty()
    termios.tcsetwinsize(other_end, (40, 120))  # a bar of progress needs a width
    with subprocess.Popen(
        [sys.executable, "-m", "flows.command.cli", "compress", tiny, "--set", "training.epochs=500"], cwd=ROOT,
        env={**given, "FEATHERWEIGHT_HOME": str(home), "TERM": "xterm"}, stdout=other_end, stderr=other_end,
    ) as run:  # fmt: skip
        os.close(other_end)
        said = b""
        while b"train:   0%" not in said and (more := os.read(terminal, 65536)):
            said += more
        run.kill()
    os.close(terminal)
    lines = [line for line in said.decode().partition("train:   0%")[0].splitlines() if line.strip()]
    assert len(lines) <= 5, lines
    assert lines[0].endswith("prepare: computing"), lines
    assert [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (prepare|train|base model): ", line)] == []


def test_show_gives_the_whole_outcome_as_one_document() -> None:
    value = record()
    document = json.loads(featherweight("show", "--json").stdout)
    assert document["run_id"] == value.run_id
    assert document["verdict"]["status"] == "passed"
    assert document["verdict"]["checks"][0]["n"] == 2121
    assert document["stages"][0]["cached"] is True
    assert document["stages"][0]["scorecard"] == {"split": "", "metric": "accuracy", "quality": 0.86, "size_mb": 90.9}
    assert value.release is not None
    assert document["bundle"] == str(store.path(value.release.digest))


def test_show_for_people_names_stage_check_and_bundle() -> None:
    value = record()
    done = featherweight("show", value.run_id[:8])
    assert done.returncode == 0
    for word in ("train", "0.8600", "Cached", "quality_drop", "passed", "films version 3", "objects"):
        assert word in done.stdout


def test_show_of_a_run_without_a_verdict_says_why() -> None:
    with pytest.raises(ValueError, match="row 7"), tracking.pipeline_run("films", {}, run_name="r"):
        raise ValueError("row 7 is empty")
    done = featherweight("show")
    assert done.returncode == 2
    assert "FAILED and has no verdict: ValueError: row 7 is empty" in done.stderr


@pytest.mark.parametrize("field", ["release", "bundle", "evidence"])
def test_what_mlflow_says_of_a_run_names_no_path(field: str, tmp_path: Path) -> None:
    """Who can write to the tracking server must not have a directory of this machine moved away."""
    precious = tmp_path / "precious"
    precious.mkdir()
    value = record().model_dump(mode="json")
    if field == "release":
        value["release"]["digest"] = str(precious)
    elif field == "bundle":
        value["stages"][0]["bundle"]["digest"] = f"../../../{precious.name}"
    else:
        value["stages"][0]["evidence"] = str(precious)
    tracking.Run(value["run_id"]).text(json.dumps(value), "outcome.json")
    with pytest.raises(FeatherweightError, match=rf"outcome.json of run {value['run_id']} cannot be read: .*{field}"):
        history.outcome()
    assert precious.is_dir()


def test_what_mlflow_says_is_not_obeyed_by_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = record()
    check = value.verdict.checks[0].model_copy(update={"explanation": "\x1b]0;owned\x07[link=x]no[/link]"})
    console.print_outcome(value.model_copy(update={"verdict": Verdict(checks=(failed(check),))}))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "[link=x]no[/link]" in said


def failed(check: Check) -> Check:
    return check.model_copy(update={"status": CheckStatus.FAILED})


def test_runs_lists_the_newest_first() -> None:
    first, second = record(), record(CheckStatus.FAILED)
    runs = json.loads(featherweight("runs", "--json").stdout)
    assert [run["run"] for run in runs] == [second.run_id, first.run_id]
    assert [run["verdict"] for run in runs] == ["failed", "passed"]
    assert [run["recipe"] for run in runs] == ["films", "films"]
    assert len(json.loads(featherweight("runs", "--json", "--limit", "1").stdout)) == 1
    assert first.run_id in featherweight("runs").stdout


@pytest.mark.parametrize("said", ["/dev/null/home", "a?b", "~nobody-of-this-name/x"])
def test_an_impossible_home_is_one_line_and_a_status_of_its_own(said: str) -> None:
    done = featherweight("runs", "--json", FEATHERWEIGHT_HOME=said, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith("featherweight: ")
    assert json.loads(done.stdout) == {"error": line.removeprefix("featherweight: "), "exit_status": 4}


FULL = """
import resource, sys
from flows.command import cli, history
def fail(*, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a disk that takes nothing more
    raise RuntimeError("500 Internal Server Error")
history.runs = fail
sys.exit(cli.main(["runs"]))
"""


def test_a_disk_that_fills_up_is_said_in_one_line_and_nothing_is_written_to_it(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith(f"featherweight: nothing can be written to {home}")
    assert not (home / "logs").exists()


def test_doctor_finds_this_installation_healthy() -> None:
    done = featherweight("doctor", "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert report["healthy"] is True, findings
    assert done.returncode == 0
    assert "CPUExecutionProvider" in findings["providers"]["detail"]
    assert findings["prefect api"]["status"] == findings["mlflow"]["status"] == "ok"
    assert machine.kernels() in findings["cpu"]["detail"]
    assert "teachers' answers take at most 500" in findings["space"]["detail"]


def test_doctor_finds_two_runtimes_and_a_dead_server(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / "site" / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = featherweight("doctor", "--json", **environment)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["onnxruntime"]["status"] == "broken"
    assert "overwrite each other" in findings["onnxruntime"]["detail"]
    assert findings["prefect api"]["status"] == "broken"
    assert findings["mlflow"]["status"] == "ok"
