"""What days with servers share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flows import tiny_recipes


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe whose stages take seconds, as the form would send it; it passes with any seed, whatever is learned."""
    recipe = tiny_recipes.write(tmp_path_factory.mktemp("tiny")).model_dump(mode="json")
    return {**recipe, "budget": {**recipe["budget"], "floor": "none", "max_quality_drop": 0.99}}
