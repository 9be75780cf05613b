"""Aliases: forward, back, and never to what did not pass without a reason."""

from __future__ import annotations

import pytest

from flows.promote import promote, rollback
from tasks import registry, tracking
from tasks.contracts import FeatherweightError
from tests.tasks.shippable import register_two


@pytest.fixture
def versions() -> None:
    """Two versions that passed: the first was deployed, the second is the candidate."""
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


@pytest.mark.parametrize(
    ("name", "which", "message"),
    [
        ("nothing", "champion", "no model 'nothing' is registered; there are polarity"),
        (
            "polarity",
            "best",
            "polarity has no alias 'best'; it has candidate \\(version 2\\), champion \\(version 1\\)",
        ),
        ("polarity", 7, "polarity has no version 7; it has 1, 2"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(name: str, which: str | int, message: str) -> None:
    with pytest.raises(FeatherweightError, match=message):
        registry.find(name, which)
