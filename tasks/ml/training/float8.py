"""Products in 8-bit floating point while a model is trained: activations and weights in E4M3, gradients in E5M2.

Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv:2209.05433), by torchao, which scales each tensor by its
largest element. Weights, their gradients and the optimizer's state keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families

MULTIPLE = 16
"""The hardware multiplies matrices whose dimensions are multiples of this."""


@contextmanager
def linears(model: nn.Module, *, emulate: bool = False) -> Iterator[None]:
    """Computes the linear layers of the backbone in fp8 while it is open; the head and odd dimensions stay as they are.

    Args:
        emulate: multiplies in fp32 what was rounded to fp8: the same numbers but for the order of sums, on any device.

    Raises:
        FeatherweightError: torchao is not installed.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise FeatherweightError(
            "precision: fp8 needs the package torchao: pip install 'featherweight[training]'"
        ) from error
    originals = {
        name: linear
        for name, linear in families.of_model(model).linears(model).items()
        if not any(size % MULTIPLE for size in linear.weight.shape)
    }
    # The gradient of a weight sums over the tokens of a batch, of which there may be any number: hence the padding.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name in originals, config=config)
    try:
        yield
    finally:
        for name, original in originals.items():
            trained = model.get_submodule(name)
            original.weight, original.bias = trained.weight, trained.bias  # type: ignore[assignment]
            model.set_submodule(name, original.train(trained.training))
