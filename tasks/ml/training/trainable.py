"""What of a model is trained, and how it is held in memory meanwhile. Afterwards it is as it was, but trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import unsuited
from tasks.ml.models import architectures
from tasks.ml.parallel import world
from tasks.ml.parallel.parallelism import spread
from tasks.ml.training import float8, optimizers
from tasks.ml.training.precision import choose as choose_precision

LORA_ALPHA_PER_RANK = 2
"""Scale of the update: α/r = 2, so that a learning rate suits all ranks (Hu et al. 2021, section 4.1)."""


def _add_adapters(model: nn.Module, rank: int) -> None:
    """LoRA, Hu et al. 2021 (arXiv:2106.09685): W + (α/r)·B·A on the linear layers of the backbone; the head in full."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise FeatherweightError("lora_rank: needs the package peft: pip install 'featherweight[training]'") from error
    backbone = f"{model.base_model_prefix}."
    head = [p for name, p in model.named_parameters() if not name.startswith(backbone)]
    targets = list(architectures.of_model(model).linears(model))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=LORA_ALPHA_PER_RANK * rank, target_modules=targets), model)
    for parameter in head:
        parameter.requires_grad_(True)


def _merge_adapters(model: nn.Module) -> None:
    """Adds each adapter to the layer that it adapts, and puts that layer back in its place."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        model.set_submodule(name, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _is_head(model: Any, table: nn.Embedding) -> bool:
    """Whether logits are products with the token table itself."""
    return getattr(model.get_output_embeddings(), "weight", None) is table.weight


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Computes activations of each layer again in the backward pass while it is open.

    Chen et al. 2016, arXiv:1604.06174.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def prepared(
    model: nn.Module,
    *,
    optimizer: str,
    precision: str,
    embeddings: str,
    activation_checkpointing: bool,
    lora_rank: int,
    parallelism: str = "replicated",
) -> Iterator[None]:
    """Prepares a model to be trained while it is open.

    Args:
        optimizer: one of ``optimizers.OPTIMIZERS``, which decides whether gradients may be sparse.
        precision: one of ``precision.PRECISIONS``, of which fp8 concerns the layers themselves.
        embeddings: ``sparse``, ``dense`` or ``frozen`` token embeddings. A table that is the head as well has gradients
            at every token, so that ``sparse`` is ``dense`` there.
        activation_checkpointing: see ``checkpointed``.
        lora_rank: rank of low-rank updates, merged on leaving; 0 trains the layers themselves.
        parallelism: one of ``parallelism.WAYS``, for several processes. Gradients are dense unless it is
            ``replicated``, and the model stays spread on leaving.

    Raises:
        FeatherweightError: the device cannot do the precision; the package of LoRA or fp8 is missing; or processes
            cannot train like that.
    """
    reason = unsuited(parallelism, optimizer=optimizer, precision=precision, lora_rank=lora_rank)
    if world.size() > 1 and reason:
        raise FeatherweightError(reason)
    table = architectures.of_model(model).token_embedding(model)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    with ExitStack() as undo:
        if lora_rank:
            _add_adapters(model, lora_rank)
            undo.callback(_merge_adapters, model)
        if embeddings == "frozen":
            table.weight.requires_grad_(False)
        elif embeddings == "sparse" and table.weight.requires_grad:
            table.sparse = (
                table.weight.device == torch.device("cpu")
                and optimizers.describe(optimizer).adam_scaled
                and parallelism == "replicated"
                and not _is_head(model, table)
            )
            undo.callback(setattr, table, "sparse", False)
        if precision == "fp8":
            choose_precision(precision, table.weight.device)  # or refuse
            undo.enter_context(float8.linears(model))
        if activation_checkpointing:
            undo.enter_context(checkpointed(model))
        undo.enter_context(spread(model, parallelism))
        yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
