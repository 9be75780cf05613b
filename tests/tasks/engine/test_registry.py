"""Aliases: forward, back, and never to what did not pass without a reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from flows.promote import promote, rollback
from tasks.contracts.base import FeatherweightError
from tasks.deploy import DeploymentConfig, deploy
from tasks.engine import registry, tracking
from tasks.register import register
from tests.tasks.shippable import RECIPE, outcome, register_two

RunsAgain = Callable[..., None]


@pytest.fixture
def runs_again() -> RunsAgain:
    """Ships what a run made, as a flow does; what it made is told by how many rows it lost."""

    def run(**evidence: int) -> None:
        with tracking.pipeline_run("polarity", RECIPE, run_name="again") as run_id:
            deploy.fn(
                register.fn("polarity", outcome(run_id, **evidence), run_id=run_id), DeploymentConfig(), run_id=run_id
            )

    return run


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions that passed: the first was deployed, the second is the candidate. Every version answers."""
    monkeypatch.setattr(registry, "self_test", lambda *_: time.sleep(0.1))
    register_two()


pytestmark = pytest.mark.usefixtures("versions")


def test_forward_and_back() -> None:
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 1}
    assert promote("polarity").version == 2
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 2, "previous": 1}
    assert rollback("polarity").version == 1
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 1, "previous": 2}


def test_nothing_to_go_back_to() -> None:
    with pytest.raises(FeatherweightError, match="polarity has no previous champion to go back to"):
        rollback("polarity")


def test_what_did_not_pass_needs_a_reason_which_is_kept() -> None:
    tracking.client().set_model_version_tag("polarity", "2", registry.VERDICT_TAG, "failed")
    with pytest.raises(FeatherweightError, match=r"version 2 has no passed verdict \(failed\); champion stays"):
        promote("polarity", 2)
    assert registry.aliases("polarity")["champion"] == 1
    assert promote("polarity", 2, "the old one answers nonsense").version == 2
    tags = tracking.client().get_model_version("polarity", "2").tags
    assert tags[registry.OVERRIDE_TAG] == "the old one answers nonsense"


def test_what_a_person_decided_stands_until_there_is_something_new(runs_again: RunsAgain) -> None:
    """The nightly run ships the cached version that was rolled back, and an older recipe that runs again its own."""
    runs_again(lost=61)
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 2, "previous": 1}, (
        "a run died before it deployed"
    )
    runs_again(lost=60)
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 2, "previous": 1}, "an older recipe"
    rollback("polarity")
    for lost in (61, 60):
        runs_again(lost=lost)
        assert registry.aliases("polarity") == {"candidate": 2, "champion": 1, "previous": 2}
    runs_again(lost=62)
    assert registry.aliases("polarity") == {"candidate": 3, "champion": 3, "previous": 1}
    tracking.client().set_registered_model_alias("polarity", "champion", "1")  # a person, in MLflow itself
    runs_again(lost=62)
    assert registry.aliases("polarity")["champion"] == 1


def test_promotions_at_once_forget_no_champion() -> None:
    with tracking.pipeline_run("polarity", RECIPE, run_name="third") as run_id:
        register.fn("polarity", outcome(run_id, lost=62), run_id=run_id)
    releases = [registry.release(registry.find("polarity", number)) for number in (2, 3)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda release: registry.move("champion", release), releases))
    found = registry.aliases("polarity")
    assert {found["champion"], found["previous"]} == {2, 3}, "the later one replaced the earlier one, and not the first"


def test_a_death_between_two_writes_leaves_champion_and_previous_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    promote("polarity")
    client = tracking.client()
    writers = {name: getattr(client, name) for name in ("set_registered_model_tag", "set_registered_model_alias")}

    class DiedError(BaseException):
        pass

    for writes in range(4):
        before, left = registry.aliases("polarity"), iter([True] * writes)
        release = registry.release(registry.find("polarity", before["previous"]))

        def dying(*arguments: str, write: Callable[..., None], left: Iterator[bool] = left) -> None:
            if not next(left, False):
                raise DiedError
            write(*arguments)

        with monkeypatch.context() as patch:
            for name, write in writers.items():
                patch.setattr(client, name, partial(dying, write=write))
            with pytest.raises(DiedError):
                registry.move("champion", release)
        found = registry.aliases("polarity")
        assert {found["champion"], found["previous"]} == {1, 2}, writes
    assert rollback("polarity").version == found["previous"]


def test_what_is_not_there_is_named_with_what_is() -> None:
    for name, which, message in [
        ("", "champion", "no model '' is registered; there are polarity"),
        ("a/b", "candidate", "no model 'a/b' is registered; there are polarity"),
        ("polarity", "²", "polarity has no alias '²'; it has candidate"),
        ("polarity", -1, "polarity has no version -1; it has 1, 2"),
        ("polarity", "9" * 5000, "polarity has no version 9+; it has 1, 2"),
        ("nothing", "champion", "no model 'nothing' is registered; there are polarity"),
        (
            "polarity",
            "best",
            "polarity has no alias 'best'; it has candidate \\(version 2\\), champion \\(version 1\\)",
        ),
        ("polarity", 7, "polarity has no version 7; it has 1, 2"),
    ]:
        with pytest.raises(FeatherweightError, match=message):
            registry.find(name, which)
