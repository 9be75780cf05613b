"""The container files, as far as they can be checked without an engine: by a linter, a schema, and what must hold."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from flows.servers import embedded

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8")
ONCE = ("bucket", "deployments")
"""Services that do one thing and end."""


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", "infra/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_image_is_pinned_and_nobody_is_root() -> None:
    (base,) = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    user, install = DOCKERFILE.index("USER 10001"), DOCKERFILE.index("RUN infra/run true")
    assert user < install, "installed as root"


def test_whatever_is_started_in_the_image_calls_nobody() -> None:
    assert {f"{name}={value}" for name, value in embedded.PRIVACY.items() if not name.startswith("HF_")} <= set(
        re.findall(r"\w+=\w+", DOCKERFILE)
    )


def test_everything_that_is_copied_is_there_and_is_not_ignored() -> None:
    sources = [
        path
        for line in re.findall(r"^COPY --chown=featherweight (.+)$", DOCKERFILE, re.MULTILINE)
        for path in line.split()[:-1]
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == allowed
    assert all((ROOT / path).exists() for path in sources)


def test_it_is_a_compose_file() -> None:
    filled = re.sub(r"\$\{\w+:\?[^}]*\}", "given", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
    plain = {name: value for name, value in yaml.safe_load(filled).items() if not name.startswith("x-")}
    assert set(PyCompose.from_json(json.dumps(plain)).service_names()) == COMPOSE["services"].keys()


def test_no_secret_is_in_the_file() -> None:
    for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET|AUTH)\w*): (.+)", TEXT):
        assert re.fullmatch(r"\$\{\w+:\?.+\}", value), f"{name} must come from the environment"
    for url in re.findall(r"//\w+:(\S+?)@", TEXT):
        assert url.startswith("${")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_secret_is_on_a_command_line(name: str) -> None:
    """Which every user of the machine sees."""
    service = COMPOSE["services"][name]
    assert "${" not in json.dumps([service.get("command"), service.get("healthcheck")])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_pinned_watched_and_restarted(name: str) -> None:
    service = COMPOSE["services"][name]
    assert re.search(r":[^:]+$", service["image"])
    assert not service["image"].endswith(":latest")
    if name not in ONCE:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_what_is_kept_is_kept_in_named_volumes() -> None:
    used = {mount.partition(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", ())}
    assert used == COMPOSE["volumes"].keys()


@pytest.mark.slow
def test_commands_are_ones_that_this_installation_has() -> None:
    """``--with-healthcheck`` and the options of both servers exist."""
    for command, options in {
        ("prefect", "worker", "start"): ["--pool", "--type", "--with-healthcheck"],
        ("python", "-m", "flows.servers.gate"): ["--host", "--allowed-hosts"],
        ("prefect", "work-pool", "create"): ["--base-job-template", "--overwrite", "--type"],
        ("mlflow", "server"): ["--allowed-hosts", "--artifacts-destination", "--backend-store-uri"],
    }.items():
        text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        assert all(option in text for option in options), command
