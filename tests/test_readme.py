"""The README and the pages of ``infra/docs`` tell the truth: links, paths, commands, recipes and what is generated."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel, Discriminator, Field, Tag

from flows.command import cli, commands, recipe_files, reference
from flows.recipe import Recipe
from flows.servers import deployments

ROOT = reference.ROOT
PAGES = [reference.README, *sorted(reference.DOCS.glob("*.md"))]
DECISIONS = sorted((ROOT / "infra" / "decisions").glob("*.md"))
MOST_LINES, LONGEST_LINE, LONGEST_ROW = 200, 120, 500
NOT_RUN = "the tests do not run it"
"""How the first line of a block of commands ends that is too slow, or needs what is not there."""


@cache
def tokens(path: Path) -> list[Token]:
    """Blocks of a page, and what is inside its lines."""
    found = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    return [one for block in found for one in (block, *(block.children or ()))]


def fences(path: Path, *infos: str) -> list[Token]:
    return [one for one in tokens(path) if one.type == "fence" and one.info in infos]


def spans(path: Path) -> list[str]:
    """What stands between backticks."""
    return [" ".join(one.content.split()) for one in tokens(path) if one.type == "code_inline"]


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    found: list[str] = []
    for before, one in zip(tokens(path), tokens(path)[1:], strict=False):
        if before.type == "heading_open":
            text = "".join(part.content for part in one.children or () if part.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("path", reference.SECTIONS, ids=lambda path: path.name)
def test_what_is_written_from_the_code_is_up_to_date(path: Path) -> None:
    assert reference.up_to_date(path) == path.read_text(encoding="utf-8"), (
        "run: infra/run python -m flows.command.reference"
    )


def test_every_module_and_page_is_in_the_tree() -> None:
    tree = reference.tree()
    paths = [path for folder in ("flows", "tasks") for path in (ROOT / folder).rglob("*.py")]
    for path in (*paths, *PAGES[1:]):
        if path.name != "__init__.py":
            assert re.search(rf"^ +{re.escape(path.name)} +\S", tree, re.MULTILINE), path


def number_of_groups(model: type[BaseModel]) -> int:
    groups = [group for field in model.model_fields.values() for group in reference.groups(field)]
    return len(groups) + sum(map(number_of_groups, groups))


def test_every_field_is_in_the_reference() -> None:
    text = reference.reference()
    for name in ("name", "data.source", "training.learning_rate", "quantization.scheme", "budget.max_quality_drop"):
        assert f"| `{name}` |" in text
    assert text.count("\n### ") == number_of_groups(Recipe)


class FractionConfig(BaseModel):
    """Cuts a fraction."""

    keep: float = 0.5


class Speed(BaseModel):
    """Cuts until it is fast."""

    by: Literal["times"] = "times"
    target: float | None = None


class Groups(BaseModel):
    """Fields that are groups, or may be."""

    either: FractionConfig | Speed = FractionConfig()
    maybe: FractionConfig | None = Field(None, description="Or nothing.")
    neither: (
        Annotated[Annotated[FractionConfig, Tag("shares")] | Annotated[Speed, Tag("speed")], Discriminator(len)] | None
    ) = None
    plain: int | None = 3


def test_groups_that_may_be_absent_or_one_of_several_have_tables() -> None:
    text = reference.reference(Groups)
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == [
        "A recipe",
        "`either`, one of two: fraction",
        "`either`, one of two: speed",
        "`maybe` (optional)",
        "`neither`, one of two: shares (optional)",
        "`neither`, one of two: speed (optional)",
    ]
    assert "\nOr nothing. Cuts a fraction.\n" in text
    assert "| `plain` | `3` | int, null |  |" in text
    assert "| `either.by` | `times` | `times` |  |" in text
    assert "| `either.target` | `null` | float, null |  |" in text


def test_the_readme_is_a_page_and_begins_with_the_two_commands() -> None:
    text = reference.README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    first = fences(reference.README, "")[0].content.splitlines()
    assert [line.partition("#")[0].rstrip() for line in first] == ["infra/run featherweight demo", "infra/run pytest"]


def test_every_page_is_linked_from_the_readme() -> None:
    links = {one.attrs["href"] for one in tokens(reference.README) if one.type == "link_open"}
    assert {where(path) for path in PAGES[1:]} <= links


@pytest.mark.parametrize("path", PAGES, ids=where)
def test_lines_can_be_read(path: Path) -> None:
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        is_code ^= line.startswith("```")
        limit = LONGEST_ROW if is_code or line.startswith("|") else LONGEST_LINE
        assert len(line) <= limit, f"{where(path)}:{number}"


@pytest.mark.parametrize("path", [*PAGES, *DECISIONS], ids=where)
def test_links_lead_somewhere(path: Path) -> None:
    for one in tokens(path):
        link = str(one.attrs.get("href") or one.attrs.get("src") or "")
        if not link or re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{where(path)}: {link}"
        assert not anchor or anchor in anchors(target), f"{where(path)}: {link}"


@pytest.mark.parametrize("path", [*PAGES, *DECISIONS], ids=where)
def test_paths_and_modules_exist(path: Path) -> None:
    code = [*spans(path), *(one.content for one in tokens(path) if one.type == "fence")]
    for text in code:
        for name in re.findall(r"(?<![\w/.-])(?:flows|tasks|tests|infra)/[\w./*-]*", text):
            assert any(ROOT.glob(name.strip("/").rstrip("."))), f"{where(path)}: {name}"
        for module in re.findall(r"-m ((?:flows|tasks)\.[\w.]+)", text):
            assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), f"{where(path)}: {module}"


def test_environment_variables_are_read() -> None:
    said = {name for path in PAGES for text in spans(path) for name in re.findall(r"FEATHERWEIGHT_[A-Z_]+", text)}
    sources = [ROOT / "infra" / "run", *(path for name in ("flows", "tasks") for path in (ROOT / name).rglob("*.py"))]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert {name for name in said if name not in code} == set()


def said_commands(path: Path) -> Iterator[str]:
    """Commands of ``featherweight`` on a page, each with its arguments."""
    lines = [line for one in fences(path, "", "console", "sh") for line in one.content.splitlines()]
    for text in (*lines, *spans(path)):
        if found := re.match(r"(?:\$ )?(?:infra/run )?featherweight +([^|&]+)", text):
            yield found.group(1).strip()


def known_commands() -> set[str]:
    return {name for name in commands.app.resolved_commands() if not name.startswith("-")}


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_commands_are_known_with_their_options(page: Path) -> None:
    for said in said_commands(page):
        words = shlex.split(said, comments=True)
        if len(words) > 1 or words[0] not in known_commands():  # else it is spoken of, and not said in full
            cli.read(words)


def test_every_command_is_on_its_page() -> None:
    said = {text.split()[0] for text in said_commands(reference.DOCS / "commands.md")}
    assert known_commands() <= said


def test_deployments_are_there() -> None:
    there = {f"{one['entrypoint'].rpartition('.')[2]}/{one['name']}" for one in deployments.described()}
    said = {
        name for path in PAGES for name in re.findall(r"deployment run ([\w/-]+)", path.read_text(encoding="utf-8"))
    }
    assert said
    assert said <= there


def test_what_a_deployment_is_told_are_parameters_of_its_flow() -> None:
    flows = {
        f"{one['entrypoint'].rpartition('.')[2]}/{one['name']}": one["entrypoint"] for one in deployments.described()
    }
    told = [
        (name, options)
        for path in PAGES
        for name, options in re.findall(r"deployment run ([\w/-]+)(.*)", path.read_text(encoding="utf-8"))
    ]
    assert any(options for _, options in told)
    for name, options in told:
        module, _, flow = flows[name].rpartition(".")
        known = inspect.signature(getattr(import_module(module), flow).fn).parameters
        assert {*re.findall(r"--param (\w+)=", options)} <= known.keys(), name


def recipes() -> Iterator[Any]:
    for path in PAGES:
        for one in fences(path, "yaml"):
            name = one.content.splitlines()[0].removeprefix("# ")
            yield pytest.param(name, one.content, id=f"{path.name}: {name}")


@pytest.mark.parametrize(("name", "text"), recipes())
def test_recipes_are_valid(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    recipe_files.load(str(tmp_path / name))


def has_field(model: type[BaseModel], path: list[str]) -> bool:
    if path[0] not in model.model_fields:
        return False
    groups = reference.groups(model.model_fields[path[0]])
    return len(path) == 1 or any(has_field(group, path[1:]) for group in groups)


@pytest.mark.parametrize("page", [path for path in PAGES if path.stem != "changelog"], ids=where)
def test_fields_are_there(page: Path) -> None:
    """But in the changelog, which tells of those that are gone."""
    for text in spans(page):
        found = re.match(r"([a-z_]+)((?:\.[a-z_]+)+)(?:[:=].*)?$", text)
        if found and found.group(1) in Recipe.model_fields:
            path = (found.group(1) + found.group(2)).split(".")
            assert has_field(Recipe, path), f"{where(page)}: {text}"


def steps(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a block, and the output that the page shows of each."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip()


def blocks_to_run(path: Path) -> list[str]:
    return [one.content for one in fences(path, "console") if NOT_RUN not in one.content.splitlines()[0]]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [path for path in PAGES if blocks_to_run(path)], ids=where)
def test_commands_do_what_the_page_says(page: Path, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": search, "PYTHONPATH": str(ROOT), "FEATHERWEIGHT_HOME": str(home)}
    for block in blocks_to_run(page):
        assert list(steps(block)), "a block to run has a command"
        for command, expected in steps(block):
            done = subprocess.run(
                ["bash", "-c", command.replace("infra/run ", "")],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            pattern = ".*".join(map(re.escape, expected.split("…"))) if expected else ".*"
            assert done.returncode == 0, f"{command}\n{done.stdout}"
            assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"{command}\n{done.stdout}"
