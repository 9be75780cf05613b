"""Who may know whom: the import contracts of pyproject.toml, and what importing the command costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
        ("flows.compress", ("torch", "transformers", "onnx", "onnxruntime")),
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
