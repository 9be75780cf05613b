"""The house: who may know whom, what importing the command costs, how large files and rooms are, where things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.ml.problem import PROBLEMS, problem_of

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for name in ("flows", "tasks") for path in (ROOT / name).rglob("*.py"))
ROOMS = sorted({path.parent for path in SOURCES})
MOST_LINES, MOST_MODULES = 400, 16
QUESTIONS = {
    "where is the loss between attention relations?": "tasks/ml/distillation/losses.py:attention_relations",
    "what decides that a check is undecidable?": "tasks/ml/proof/decision.py:decide",
    "where would a new quantization scheme go?": "tasks/ml/models/quantization_spec.py:plan",
    "and what would it compute?": "tasks/ml/quantization/simulation.py:simulate",
    "what must a new problem answer?": "tasks/ml/problem.py:Problem",
    "which architectures are there?": "tasks/ml/models/families.py:Family",
    "what makes a stage be computed again?": "tasks/engine/keys.py:cache_key",
    "which row is in which split?": "tasks/ml/data/splitting.py:divide",
    "who may open the test split?": "tasks/ml/data/held_out.py:require",
    "when does the runtime not say what PyTorch says?": "tasks/ml/runtime/parity.py:compare",
    "which layers are cut to meet a speed?": "tasks/ml/latency/allocation.py:allocate",
    "what does a search vary?": "flows/trials/space.py:Space",
    "which commands are there?": "flows/command/commands.py:compress",
}
"""What a stranger asks, and the function or class that answers."""


def test_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("flows.command.cli", ("torch", "transformers", "onnx", "onnxruntime", "prefect", "mlflow", "pydantic")),
        ("flows.command.recipe_files", ("torch", "prefect", "mlflow")),
        ("flows.servers.embedded", ("torch", "prefect", "mlflow")),
        ("flows.command.xray", ("torch", "transformers", "onnx", "onnxruntime", "prefect", "mlflow")),
        ("flows.compress", ("torch", "transformers", "onnx", "onnxruntime", "scipy.optimize")),
    ],
)
def test_importing_is_cheap(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_cross_reference_in_the_contracts_exists() -> None:
    """A contract about a module that was renamed would hold for ever."""
    import importlib.util
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    allowed = [name for contract in contracts for name in contract.get("allowed_importers", ())]
    assert allowed
    for name in allowed:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    assert importlib.util.find_spec("flows")


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_room_has_more_modules_than_are_seen_at_a_glance() -> None:
    modules = {str(room.relative_to(ROOT)): {path.stem for path in room.glob("*.py")} - {"__init__"} for room in ROOMS}
    assert {room: len(names) for room, names in modules.items() if len(names) > MOST_MODULES} == {}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_what_it_is_for_and_exports_nothing(room: Path) -> None:
    tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    froms = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    ours = [name for name in froms + plain if name.partition(".")[0] in ("flows", "tasks")]
    assert ours == [] or room == ROOT / "flows", "only that one has something to do, whichever story is imported"


def conditions_on_the_problem(tree: ast.AST) -> list[str]:
    """Comparisons and matches of a problem, or of what one is called or measured by."""
    names = {*PROBLEMS, *(module.rpartition(".")[2] for module in PROBLEMS.values())}
    names |= {problem_of(name).METRIC for name in PROBLEMS}
    found = []
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.subject, *(case.pattern for case in node.cases)] if isinstance(node, ast.Match) else []
        said = {part.value for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)}
        asked = {getattr(side, "attr", getattr(side, "id", "")) for side in sides}
        if said & names or asked & {"problem", "problem_name"}:
            found.append(ast.unparse(node))
    return found


def test_nobody_but_a_problem_asks_which_problem_there_is() -> None:
    kept = [path for path in SOURCES if path.parent.name != "problems" and path.name != "problem.py"]
    found = {
        str(path.relative_to(ROOT)): conditions_on_the_problem(ast.parse(path.read_text("utf-8"))) for path in kept
    }
    assert {path: conditions for path, conditions in found.items() if conditions} == {}


@pytest.mark.parametrize(
    "code",
    [
        "if recipe.problem == 'something': pass",
        "x = 1 if metric in ('r2',) else 2",
        "match source.problem:\n    case _: pass",
        "match kind:\n    case 'text-regression': pass",
    ],
)
def test_a_condition_on_the_problem_is_found(code: str) -> None:
    assert conditions_on_the_problem(ast.parse(code))


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_a_stranger_finds(question: str, answer: str) -> None:
    path, _, name = answer.partition(":")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, question
