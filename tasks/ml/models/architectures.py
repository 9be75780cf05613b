"""Which architecture a model has: that of an encoder or of a decoder, and what holds for both.

What is said of encoders alone asks ``families``, and of decoders alone ``decoders``: each refuses the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.contracts.base import FeatherweightError
from tasks.ml.models.decoders import DECODERS, Decoder
from tasks.ml.models.families import FAMILIES, Family

if TYPE_CHECKING:
    from torch import nn

Architecture = Family | Decoder


def of(model_type: str) -> Architecture:
    """Returns the description of a ``config.model_type``.

    Raises:
        FeatherweightError: the architecture has no description.
    """
    everyone: tuple[Architecture, ...] = (*FAMILIES, *DECODERS)
    for one in everyone:
        if model_type in one.model_types:
            return one
    known = ", ".join(name for one in everyone for name in one.model_types)
    raise FeatherweightError(f"base_model: architecture {model_type!r} is not supported; supported: {known}")


def require_cuttable(architecture: Architecture) -> None:
    """Raises ``FeatherweightError`` where heads and FFN channels cannot be cut out of a layer yet."""
    if isinstance(architecture, Decoder) and architecture.is_transposed:
        raise FeatherweightError(
            f"pruning: heads and channels of a {architecture.model_types[0]} cannot be cut, whose query, key and value "
            "are one matrix; set pruning.keep_heads and pruning.keep_ffn to 1, or name another base_model"
        )


def of_model(model: nn.Module) -> Architecture:
    """Returns the description of a model's architecture, as ``of`` does of its name."""
    config: Any = model.config
    return of(config.model_type)
