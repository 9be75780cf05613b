"""The cache key: everything that changes what a stage computes is in it, whoever adds what later."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from tasks import distill, prune, quantize
from tasks.contracts.base import PlainText, StageConfig
from tasks.contracts.values import Bundle, Splits, StageOutput
from tasks.engine import keys
from tasks.engine.keys import Outside
from tasks.engine.stage import stage
from tasks.tutoring import TeachingConfig
from tests.tasks import tiny_stages
from tests.tasks.tiny_stages import TinyConfig

ROOT = Path(__file__).parents[3]


def forget_code() -> None:
    """A process reads its own code once; these tests change it."""
    keys.code_digest.cache_clear()
    keys._source.cache_clear()
    keys._read.cache_clear()


@pytest.fixture(autouse=True)
def _read_code_anew() -> Iterator[None]:
    forget_code()
    yield
    forget_code()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source": "b"}, "changed"),
        ({"config": TinyConfig(width=2)}, "changed"),
        ({"seed": 1}, "changed"),
        ({"source": "a@new-content"}, "changed"),
        ({"config": TinyConfig()}, "same"),
    ],
)
def test_what_changes_a_key(change: dict[str, object], expected: str) -> None:
    arguments: dict[str, object] = {"source": "a", "config": TinyConfig(width=1), "seed": 0}
    function = tiny_stages.make.__wrapped__
    before = keys.cache_key(function, arguments)
    assert (keys.cache_key(function, arguments | change) != before) is (expected == "changed")


def test_the_salt_changes_a_key() -> None:
    function = tiny_stages.make.__wrapped__
    assert keys.cache_key(function, {}, salt="1") != keys.cache_key(function, {}, salt="2")


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError):
        keys.cache_key(tiny_stages.make.__wrapped__, {"source": Path("a")})


def digest_of(source: str, helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Code digest of a stage module and a helper in ``tasks/ml`` that it imports inside a function."""
    (tmp_path / "tasks" / "ml").mkdir(parents=True, exist_ok=True)
    (tmp_path / "tasks" / "ml" / "kernel.py").write_text(helper, encoding="utf-8")
    for name in ("__init__.py", "stranger.py"):
        (tmp_path / "tasks" / "ml" / name).write_text("import nothing_of_ours", encoding="utf-8")
    (tmp_path / "tasks" / "engine").mkdir(exist_ok=True)
    (tmp_path / "tasks" / "engine" / "store.py").write_text(helper, encoding="utf-8")
    module = tmp_path / "tasks" / "melt.py"
    module.write_text(source, encoding="utf-8")
    fake = type(sys)("tasks.melt")
    fake.__file__ = str(module)
    monkeypatch.setitem(sys.modules, "tasks.melt", fake)
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    forget_code()
    return keys.code_digest("tasks.melt")


STAGE = '''
from tasks.engine import store
def melt():
    """Melts."""
    from tasks.ml import kernel
    return kernel.heat(2)
'''
KERNEL = "def heat(x):\n    return x * 2\n"


@pytest.mark.parametrize(
    ("stage", "kernel", "expected"),
    [
        (STAGE, KERNEL, "same"),
        (STAGE.replace("Melts.", "Liquefies."), KERNEL, "same"),
        (STAGE + "# a comment\n", "\n\n" + KERNEL.replace("x * 2", "(x*2)  # twice"), "same"),
        (STAGE.replace("heat(2)", "heat(3)"), KERNEL, "changed"),
        (STAGE, KERNEL.replace("x * 2", "x * 3"), "changed"),
        (STAGE.replace("from tasks.ml import kernel", "from tasks.ml.kernel import heat"), KERNEL, "changed"),
    ],
)
def test_code_that_computes_differently_has_another_digest(
    stage: str, kernel: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_of(STAGE, KERNEL, tmp_path, monkeypatch)
    assert (digest_of(stage, kernel, tmp_path, monkeypatch) != before) is (expected == "changed")


def test_what_moves_bytes_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(STAGE, KERNEL, tmp_path, monkeypatch)
    for name in ("engine/store.py", "ml/stranger.py"):
        (tmp_path / "tasks" / name).write_text("changed = True", encoding="utf-8")
    forget_code()
    assert keys.code_digest("tasks.melt") == before


@pytest.mark.parametrize("module", ["train", "distill", "prune", "quantize", "export", "validate"])
def test_the_code_of_the_real_stages_is_followed(module: str) -> None:
    """A stage's key covers the mathematics that it reaches, and none of it is imported to find out."""
    code = (
        f"import sys, tasks.{module}; from tasks.engine import keys; "
        f"keys.code_digest('tasks.{module}'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    tree = ast.parse((ROOT / "tasks" / f"{module}.py").read_text(encoding="utf-8"))
    assert any(keys._source(name) for name in keys._imports(tree))


def test_what_is_executed_by_its_name_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = 'def melt():\n    return ["-m", "tasks.ml.kernel"]\n'
    before = digest_of(by_name, KERNEL, tmp_path, monkeypatch)
    assert digest_of(by_name, KERNEL.replace("x * 2", "x * 3"), tmp_path, monkeypatch) != before


def test_how_a_training_is_set_up_counts() -> None:
    """``OptimizerConfig`` turns its fields into what the trainer is told; what travels turns nothing into anything."""
    found = keys._read(ROOT / "tasks" / "train.py")[1]
    assert "tasks.contracts.hyperparameters" in found
    assert "tasks.contracts.values" not in found


def test_the_workers_of_a_training_are_followed() -> None:
    elastic = ROOT / "tasks" / "ml" / "jobs" / "elastic.py"
    assert "tasks.ml.jobs.agent" in keys._read(elastic)[1]
    assert "tasks.ml.jobs.worker" in keys._read(elastic.with_name("agent.py"))[1]


class Inner(StageConfig):
    words: Annotated[str, Outside(lambda name: f"content of {name}")] = ""


class Outer(StageConfig):
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    column: PlainText = "text"


def test_what_a_field_names_is_found_wherever_the_field_is() -> None:
    named = Inner(words="a")
    config = Outer(inner=named, maybe=named, many=(Inner(), named))
    assert keys.outside(config) == [
        (path, "content of a") for path in (".inner.words", ".many.1.words", ".maybe.words")
    ]
    assert keys.outside(Outer()) == []


class Forgotten(StageConfig):
    folder: str = ""


def _refused(source: Bundle, config: Outer, *, more: Forgotten | None) -> StageOutput:
    raise NotImplementedError


def _anything(source: Bundle, config: Any) -> StageOutput:
    raise NotImplementedError


def _list(names: list[str]) -> StageOutput:
    raise NotImplementedError


@pytest.mark.parametrize(("function", "where"), [(_refused, "more.folder"), (_anything, "config"), (_list, "names")])
def test_text_of_which_nothing_is_said_is_refused(function: Any, where: str) -> None:
    with pytest.raises(TypeError, match=rf"^stage {function.__name__}: {re.escape(where)} may be any text; mark it"):
        stage(function)


@pytest.mark.parametrize("module", [distill, prune, quantize])
def test_the_model_that_proposes_words_is_in_the_key_of_every_stage_that_asks_it(module: Any, tmp_path: Path) -> None:
    function = getattr(module, module.__name__.rpartition(".")[2]).__wrapped__
    config = {
        distill: distill.DistillationConfig(),
        prune: prune.PruningConfig(),
        quantize: quantize.QuantizationConfig(training={}),
    }[module]
    augmentation = {"kind": "replacements", "model": str(tmp_path)}
    arguments = {
        "source": Bundle(digest="0" * 64, format="torch", problem="p"),
        "splits": Splits(digest="0" * 64, problem="p"),
        "config": config,
        "teaching": TeachingConfig(augmentation=augmentation),
        "seed": 0,
    }
    found = []
    for vocabulary in ("one", "two"):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        (tmp_path / "vocab.txt").write_text(vocabulary, encoding="utf-8")
        found.append(keys.cache_key(function, arguments))
    assert found[0] != found[1]


NO_NUMBERS = {
    "click", "coloredlogs", "dill", "filelock", "flatbuffers", "fsspec", "httpx", "huggingface-hub", "jinja2",
    "multiprocess", "networkx", "packaging", "prettytable", "protobuf", "psutil", "pydantic", "python-dateutil",
    "pyyaml", "regex", "requests", "setuptools", "sympy", "tqdm", "typer", "typing-extensions", "tzdata", "xxhash",
}  # fmt: skip
"""Libraries below the numerics libraries that compute none of the numbers: transport, files, forms, symbols."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_library_that_computes_is_in_the_key() -> None:
    """What the mathematics imports, and what that needs, is a numerics library or is said to be none."""
    owners = importlib.metadata.packages_distributions()
    used: set[str] = set()
    for path in (ROOT / "tasks" / "ml").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.partition(".")[0])
    found = {canonical(owner) for name in used - sys.stdlib_module_names for owner in owners.get(name, [])}
    found -= {"featherweight"}
    for name in keys.NUMERICS:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found |= {canonical(re.split(r"[^\w.-]", need)[0]) for need in needs if "extra ==" not in need}
    found = {name for name in found if not name.startswith(("nvidia-", "cuda-"))}  # taken from what is installed
    assert found - {canonical(name) for name in keys.NUMERICS} - NO_NUMBERS == set()
