"""The latency table of this machine, measured once for each kind of model and kept in the home."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from tasks.engine import disk
from tasks.engine.keys import code_digest, numerics_versions
from tasks.ml import digests

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.latency.latency_table import LatencyTable

logger = logging.getLogger("featherweight")


def table(model: nn.Module, problem: str, **request: Any) -> LatencyTable:
    """Returns what the parts of models like this one cost here, measured if no run has done so yet.

    Args:
        request: ``batch``, ``length`` and ``integer`` of ``latency_table.measure``.
    """
    from tasks.ml.latency import latency_table
    from tasks.ml.models import modeling

    shapes = modeling.shapes(model)
    request |= {kind: max(1, *(shape[kind] for shape in shapes)) for kind in ("heads", "ffn")}
    identity = latency_table.identity(model, problem, **request)
    key = digests.of_value([identity, code_digest(latency_table.__name__), numerics_versions()])
    path = disk.home() / "cache" / "latency" / f"{key}.json"
    with disk.lock(f"latency-{key}"):
        if path.is_file():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged: measured anew
                return latency_table.LatencyTable.from_json(path.read_text(encoding="utf-8"))
        logger.info("measuring what layers of this model cost on this machine")
        found = latency_table.measure(model, problem, **request)
        disk.write_atomically(path, found.to_json())
        return found
