"""The command against arguments, recipes and files that nobody should write: its exit statuses, and every offence.

    infra/run python tests/benchmarks/fuzz.py [--count 500] [--seed 0] [--only arguments|recipes|files] [--case N]

Every case is a process of its own, forked from one that has imported what the command imports, with its own exit status
and output. Right are 0; 1 where a document says what was judged; and 2 with one line on standard error, or one for each
wrong field of a recipe. A document was asked for, so one is on standard output. Anything else is
printed with the case, and makes the exit status 1. The same seed makes the same cases. They share one home, and
Prefect's API in it; nothing is fetched. Only of arguments that cannot be read there is no document. Takes about fifteen
minutes; on 2026-11-29, seed 0, 500 cases: 22 ended with 0, 39 with 1, 439 with 2, and none was not right.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cyclopts.argument import Argument
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from flows.command import cli, commands
from flows.command.commands import app
from flows.servers import embedded
from tests.flows.command import test_fuzz

PATIENCE_S = 180.0
"""After which a case counts as one that hangs."""
LONGEST_LINE = 1100
"""Characters of a line on standard error."""
TINY, MISSING = "tiny.yaml", "file:nothing.csv"

ODD = [
    "", " ", "-", "--", "-1", "0", "1", "2", "1.5", "9" * 5000, "1e400", "1e300", "-1e-300", "nan", "inf", "0x10",
    "²", "٣", "1_0", "\n", "a\nb", "\r", "\t", "\x1b[31mred", "\x07", "\u202e", "\u2028", "\udcff\udc80", "x" * 300,
    "x" * 100_000, "a/b", "../..", "/", ".", "..", "~", "~nosuch/x", "%s%n", "{0}", "[bold]x[/]", "$(id)", "a=b",
    "=", "a.b=", "@", "x@", "@champion", "x@²", "x@latest", "x@1", "a b", "smoke", "demo", TINY, "package:",
    "package:..", "package:os", "package:nosuch/model", "hf:", "hf:x", "demo:", "demo:x", "file:", "models:/x/1",
    "http://u:canary@127.0.0.1:1/x", "1,2", "1,,2", ",", "triton", "fp32", "latency",
]  # fmt: skip
PLACES = [
    "places/fifo", "places/socket", "places/folder", "places/loop", "places/dangling", "places/empty",
    "places/empty.csv", "places/empty.yaml", "places/fifo.csv", "places/loop.yaml", "places/new/deep.html",
    "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/environ", "/dev/stdin", "model",
    "model/config.json", "data.csv", TINY,
]  # fmt: skip
USUAL = {"recipe": TINY, "model": "./model", "name": "polarity", "run": ""}
"""What positional arguments usually are."""
LONG = re.compile(r"epochs|steps|num_processes|repeats|sentences|per_text|rounds|max_rows|trials|parallel|seconds")
"""Fields and options whose larger values are right and take long: they meet data that is not there."""


def as_argument(text: str) -> str:
    """Text as an argument can have it: without NUL, and bytes that are no UTF-8 as Python reads them."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape").replace(b"\0", b""))


WORDS = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(PLACES),
    st.text(max_size=30).map(as_argument),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    test_fuzz.NUMBERS.map(as_argument),
)


class Case(NamedTuple):
    """What a process is given: its arguments, and the files that lie beside it, by name."""

    arguments: list[str]
    files: dict[str, bytes | Path]


class Ended(NamedTuple):
    """How a process ended: a signal is a negative status, and no status is one that did not end."""

    status: int | None
    stdout: str
    stderr: str
    seconds: float


def takes(name: str) -> Iterable[Argument]:
    """What a command takes, if there is one of this name."""
    return app[name].assemble_argument_collection() if name in app else ()


@st.composite
def odd_arguments(draw: st.DrawFn) -> Case:
    """A sub-command, with odd words for what it takes."""
    names = [name for name in app if not name.startswith("-")]
    name = draw(st.sampled_from([*names, *names, "no-such"]))
    words = [name]
    for argument in takes(name):
        option = argument.name
        if not option.startswith("-"):
            words.append(draw(st.one_of(st.just(USUAL[argument.field_info.name]), WORDS)))
        elif option not in ("--json", "--check") and draw(st.integers(0, 4)) == 4:
            words += [option, *(draw(WORDS) for _ in range(argument.token_count()[0]))]
    if any(argument.name == "--set" for argument in takes(name)):
        words += ["--set", f"data.source={MISSING}"]
    if name == "up":
        words += ["--limit", "0"]  # no servers are started
    if draw(st.integers(0, 9)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(WORDS))
    return Case([*words, "--json"], {})


def fields() -> list[str]:
    """Paths of all fields of a recipe."""
    from flows.command import recipe_fields

    def below(path: tuple[str, ...]) -> Iterator[str]:
        for name in dict.fromkeys(name for group in recipe_fields.groups(path) for name in group.model_fields):
            yield ".".join([*path, name])
            yield from below((*path, name))

    return list(below(()))


@st.composite
def odd_recipes(draw: st.DrawFn) -> Case:
    """A recipe with odd values, in its file or by ``--set``, or an odd file instead of it."""
    paths = st.one_of(st.sampled_from(fields()), st.sampled_from(test_fuzz.PATHS))
    values = st.one_of(
        test_fuzz.VALUES, st.sampled_from(ODD), st.sampled_from(PLACES), st.sampled_from(PLACES).map("file:{}".format),
        st.sampled_from(["0", "1", "2", "0.5", "1e-9", "true", "none", "auto"]),
        st.sampled_from(["0", "1", "2", "3", "16", "64", "0.9"]),
    )  # fmt: skip
    changes = draw(st.lists(st.tuples(paths, values), min_size=1, max_size=2))
    kind = draw(st.sampled_from(["set", "set", "file", "raw"]))
    files: dict[str, bytes | Path] = {}
    arguments = ["compress", TINY]
    if kind == "raw":
        raw = draw(st.one_of(test_fuzz.VALUES, st.just(test_fuzz.LAUGHS)))
        files["odd.yaml"] = "\n".join([f"{path}: {value}" for path, value in changes] + [raw]).encode(
            "utf-8", "surrogateescape"
        )
        arguments = ["compress", "odd.yaml"]
    elif kind == "file":
        lines = [f"{path.split('.')[0]}: {value}" for path, value in changes]
        files["odd.yaml"] = (recipe() + "\n".join(lines)).encode("utf-8", "surrogateescape")
        arguments = ["compress", "odd.yaml"]
    else:
        for path, value in changes:
            arguments += ["--set", as_argument(f"{path}={value}")]
    if kind != "set" or any(LONG.search(path) for path, _ in changes):
        arguments += ["--set", f"data.source={MISSING}"]
    return Case([*arguments, "--json"], files)


DATA = ("data.csv", "data.jsonl", "data.json", "data.parquet")
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
VALUES: list[Any] = [None, True, -1, 0, 1, 10**12, 1.5, "", "x", [], {}, [1], {"a": 1}, "gelu", float("nan"), "9" * 400]


@st.composite
def odd_files(draw: st.DrawFn) -> Case:
    """A file of data or of a model that is cut, mixed up, of another kind, or no file at all."""
    name = draw(st.sampled_from([*DATA, *(f"model/{one}" for one in MODEL)]))
    how = draw(st.sampled_from(["bytes", "bytes", "values", "place"]))
    arguments = ["compress", TINY]
    if name in DATA:
        arguments += ["--set", f"data.source=file:{name}"]
    if how == "place":
        place = draw(st.sampled_from([*PLACES[:8], "/dev/zero", "/dev/full", "/dev/null"]))
        return Case([*arguments, "--json"], {name: Path(place)})
    content = (fixtures() / name).read_bytes()
    chance = random.Random(draw(st.integers(0, 2**32)))
    changed = _values(content, chance) if how == "values" and name.endswith(".json") else _bytes(content, chance)
    return Case([*arguments, "--json"], {name: changed})


def _values(content: bytes, chance: random.Random) -> bytes:
    """Puts another value, or none, where a JSON document has one."""
    document = json.loads(content)
    for _ in range(chance.randint(1, 2)):
        inside, key = document, None
        while isinstance(inside, (dict, list)) and inside:
            key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            if not isinstance(inside[key], (dict, list)) or not inside[key] or chance.random() < 0.3:
                break
            inside = inside[key]
        if key is None:
            continue
        if chance.random() < 0.3:
            del inside[key]
        else:
            inside[key] = chance.choice(VALUES)
    return json.dumps(document).encode()


def _bytes(content: bytes, chance: random.Random) -> bytes:
    """Changes bytes as accidents do."""
    at = chance.randrange(len(content))
    other = chance.randrange(len(content))
    odd = [
        b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b",", b";", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000,
        b"\xed\xa0\x80", b"\x1a", b"NaN", b"1e999", b"a" * 200_000,
    ]  # fmt: skip
    changes: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[at:],
        lambda: content[: min(at, other)] + content[max(at, other) :],
        lambda: content[:at] + chance.choice(odd) + content[at:],
        lambda: chance.choice(odd) + content,
        lambda: content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
        lambda: content.replace(bytes([content[at]]), chance.choice(odd[:9])),
        lambda: content + content,
        lambda: chance.randbytes(300),
        lambda: b"",
        lambda: content.decode("utf-8", "replace").encode("utf-16"),
        lambda: content.replace(b"\n", b"\r"),
    ]
    return chance.choice(changes)()


def recipe() -> str:
    """The recipe that cases begin with: a whole run of it ends after a few steps of training, at the floor."""
    return """name: tiny
base_model: ./model
data: {source: "file:data.csv", max_length: 16, max_rows: 300, selection_fraction: 0.2}
training: {learning_rate: 1.0e-3, batch_size: 16, epochs: 0.1}
distillation: {layers: 1, steps: 2}
pruning: {steps: 2}
validation: {device: cpu, threads: 1, repeats: 3, sentences: 10}
seed: 3
"""


_folder = Path()


def fixtures() -> Path:
    """The folder that every case's own is a copy of."""
    return _folder / "fixtures"


def prepare(folder: Path) -> None:
    """Writes what cases begin with: a model, rows in four formats, a recipe, and places that are no files."""
    import pandas as pd

    from tests.flows import tiny_recipes

    folder.mkdir(parents=True)
    base, source = tiny_recipes.sources(folder)
    base.rename(folder / "model")
    rows = pd.read_csv(source.rename(folder / "data.csv"))
    rows.to_json(folder / "data.jsonl", orient="records", lines=True)
    rows.to_json(folder / "data.json", orient="records")
    rows.to_parquet(folder / "data.parquet")
    (folder / TINY).write_text(recipe(), encoding="utf-8")
    places = folder / "places"
    (places / "folder").mkdir(parents=True)
    for name in ("empty", "empty.csv", "empty.yaml"):
        (places / name).touch()
    for name in ("loop", "loop.yaml"):
        (places / name).symlink_to(name)
    (places / "dangling").symlink_to("nowhere")
    for name in ("fifo", "fifo.csv"):
        os.mkfifo(places / name)
    here = Path.cwd()
    os.chdir(places)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir(here)


def lay(case: Case, folder: Path) -> None:
    """Makes the folder of a case: links to what cases begin with, and its own files."""
    (folder / "model").mkdir(parents=True)
    for path in [*fixtures().iterdir(), *(fixtures() / "model").iterdir()]:
        name = path.relative_to(fixtures())
        if path.name != "model" and str(name) not in case.files:
            (folder / name).symlink_to(path)
    for name, content in case.files.items():
        if isinstance(content, Path):
            (folder / name).symlink_to(fixtures() / content)
        else:
            (folder / name).write_bytes(content)


def execute(arguments: Sequence[str], folder: Path) -> Ended:
    """Runs the command in a process of its own, in a folder, and returns how it ended."""
    said = [folder.with_suffix(suffix) for suffix in (".out", ".err")]
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_command(arguments, folder, said)
    status = None
    while status is None and time.monotonic() - started < PATIENCE_S:
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(how)
        else:
            time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.waitpid(pid, 0)
    out, err = (path.read_bytes().decode("utf-8", "replace") for path in said)
    return Ended(status, out, err, time.monotonic() - started)


def _be_the_command(arguments: Sequence[str], folder: Path, said: Sequence[Path]) -> NoReturn:
    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(said, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["featherweight", *arguments]
        try:
            status = cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def offences(ended: Ended) -> list[str]:
    """What is not right about how a process ended."""
    if ended.status is None:
        return [f"has not ended after {PATIENCE_S:.0f} s"]
    found = []
    lines = [line for line in ended.stderr.split("\n") if line.startswith("featherweight: ")]
    document: Any = None
    with contextlib.suppress(ValueError):
        document = json.loads(ended.stdout)
    if ended.status not in (commands.PASSED, commands.NOT_PASSED, cli.BAD_INPUT):
        found.append(f"exit status {ended.status}")
    if "Traceback" in ended.stderr:
        found.append("a traceback")
    is_unread = ended.status == cli.BAD_INPUT and ended.stderr.rstrip().endswith("--help'")
    if not isinstance(document, (dict, list)) and not (is_unread or ended.stdout.startswith("Usage: ")):
        found.append("no document")
    if ended.status == commands.NOT_PASSED and not {"verdict", "healthy"} & set(document or ()):
        found.append("nothing was judged")
    if ended.status == cli.BAD_INPUT:
        if len(lines) != 1 and not (lines and all(line.startswith("featherweight: recipe ") for line in lines)):
            found.append(f"{len(lines)} lines")
        after = ended.stderr[ended.stderr.find("featherweight: ") :].rstrip("\n").split("\n")
        if len(after) != len(lines):
            found.append("lines that are not the command's")
        if max(map(len, lines), default=0) > LONGEST_LINE:
            found.append(f"a line of {max(map(len, lines))} characters")
        if any(not character.isprintable() for line in lines for character in line):
            found.append("control characters")
        if "canary" in ended.stderr:
            found.append("a password")
    return found


def start(folder: Path) -> embedded.Api:
    """Starts Prefect's API of the home, migrates its databases, and imports what commands import."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "FEATHERWEIGHT_"))]:
        del os.environ[name]
    os.environ.update(FEATHERWEIGHT_HOME=str(folder / "home"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    embedded.configure()
    server = embedded.Api()
    os.environ.update(
        PREFECT_API_URL=server.url,
        PREFECT_API_AUTH_STRING=server.password,
        PREFECT_HOME=str(folder / "home" / "prefect"),
    )
    for name in (
        "ablation",
        "compress",
        "promote",
        "search",
        "study",
        "command.doctor",
        "command.serving",
        "command.xray",
    ):
        importlib.import_module(f"flows.{name}")
    importlib.import_module("tasks.ml.models.modeling")
    server.wait()
    prepare(fixtures())
    pid = os.fork()
    if pid == 0:  # the process that others are forked from has no database open
        from tests.tasks import shippable

        shippable.register_two()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    gc.collect()
    gc.freeze()
    return server


def generate(cases: st.SearchStrategy[Case], count: int, number: int, judge: Callable[[Case], None]) -> None:
    """Makes so many cases from a seed, and has each judged."""
    how = settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seed(number)(how(given(cases)(lambda case: judge(case))))()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("arguments", "recipes", "files"), help="cases of one kind")
    parser.add_argument("--case", type=int, help="of these cases, execute this one only, and print what it said")
    options = parser.parse_args()
    kinds = {"arguments": odd_arguments(), "recipes": odd_recipes(), "files": odd_files()}
    kinds = {name: cases for name, cases in kinds.items() if options.only in (None, name)}
    statuses: Counter[str] = Counter()
    wrong = number = 0

    def judge(kind: str, case: Case) -> None:
        nonlocal wrong, number
        number += 1
        if options.case not in (None, number):
            return
        folder = _folder / "cases" / str(number)
        lay(case, folder)
        ended = execute(case.arguments, folder)
        statuses[str(ended.status)] += 1
        found = offences(ended)
        if found or options.case:
            wrong += bool(found)
            said = [repr(word if len(word) <= 200 else f"{word[:200]}…") for word in case.arguments]
            about = {
                name: content if isinstance(content, Path) else content[:200] for name, content in case.files.items()
            }
            print(f"\n{number}, {kind}: {'; '.join(found) or 'right'}: {' '.join(said)} {about or ''}")
            print(
                f"{ended.seconds:.1f} s, exit status {ended.status}: {ended.stderr[-800 if not options.case else 0 :]}",
                flush=True,
            )
        shutil.rmtree(folder)

    global _folder
    with tempfile.TemporaryDirectory(prefix="featherweight-fuzz-") as made:
        _folder = Path(made)
        server = start(_folder)
        try:
            for index, (kind, cases) in enumerate(kinds.items()):
                count = (options.count + len(kinds) - 1 - index) // len(kinds)
                generate(cases, count, options.seed, functools.partial(judge, kind))
        finally:
            server.stop()
    print(f"\n{sum(statuses.values())} cases; by exit status: {dict(sorted(statuses.items()))}; {wrong} not right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
