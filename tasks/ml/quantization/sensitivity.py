"""Which layers quantization harms, measured one after the other, and mixed precision within a budget of harm.

Dong et al. 2019, HAWQ (arXiv:1905.03696) give layers precision by a proxy of their sensitivity, the Hessian's spectrum;
here the harm itself is measured, since a pass over the split is cheap: the problem's divergence, such as KL(p‖q),
between what the model says and what it says with a part of it quantized.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from torch import nn

from tasks.ml.models import families, first_token
from tasks.ml.models.quantization_spec import INT4, INT8_DYNAMIC, LinearScheme, Spec
from tasks.ml.problem import Problem
from tasks.ml.quality import evaluation
from tasks.ml.quantization import simulation

FILE = "sensitivity.json"


@dataclass(frozen=True)
class Layer:
    """Linear layers that read the same, and what their quantization does alone.

    Attributes:
        damage: divergence from the unquantized model with only these quantized.
        scheme: what that was measured with.
        chosen: what they got in the end, ``fp32`` included.
    """

    names: tuple[str, ...]
    scheme: str
    damage: float
    chosen: str


@dataclass(frozen=True)
class Scan:
    """Damage of each group of layers, of all of them together, and of what was chosen, over n rows."""

    layers: tuple[Layer, ...]
    all_quantized: float
    chosen: float
    max_damage: float
    n: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def _raised(spec: Spec, group: Sequence[str]) -> Spec:
    """The spec with one group of layers a step more precise: int8 instead of 4 bits, floats instead of int8."""
    linears = dict(spec.linears)
    for name in group:
        how = linears.pop(name)
        if how.scheme == INT4:
            linears[name] = LinearScheme(INT8_DYNAMIC, smoothing=how.smoothing)
    return replace(spec, linears=linears)


def protect(
    model: nn.Module,
    spec: Spec,
    problem: Problem,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_damage: float,
) -> tuple[Spec, Scan]:
    """Takes precision back where it is missed most, until the whole does no more harm than allowed.

    Groups of layers are raised in the order of the damage that each does alone; after each step the whole is measured
    anew, because damages do not add up.

    Args:
        rows: token ids of the calibration split.
        max_damage: divergence that the quantized linear layers may cost; tables are not counted.

    Returns:
        The spec, and what was measured.
    """
    reference = evaluation.logits(model, rows, pad_id=pad_id, problem=problem)

    def damage(spec: Spec, names: Sequence[str]) -> float:
        simulated = copy.deepcopy(model)
        simulation.simulate(simulated, replace(spec.of(names), embeddings={}))
        if problem.FIRST_TOKEN_ONLY:
            first_token.narrow(simulated)
        return problem.divergence(reference, evaluation.logits(simulated, rows, pad_id=pad_id, problem=problem))

    groups = [
        tuple(name for name in group if name in spec.linears) for group in families.of_model(model).linear_groups(model)
    ]
    alone = {group: damage(spec, group) for group in groups if group}
    now, chosen = dict(alone), spec
    everything = total = damage(spec, list(spec.linears))
    while total > max_damage and now:
        worst = max(now, key=lambda group: now[group])
        chosen = _raised(chosen, worst)
        if worst[0] in chosen.linears:
            now[worst] = damage(chosen, worst)
        else:
            del now[worst]
        total = damage(chosen, list(chosen.linears))
    layers = tuple(
        Layer(
            names=group,
            scheme=spec.linears[group[0]].scheme,
            damage=alone[group],
            chosen=chosen.linears[group[0]].scheme if group[0] in chosen.linears else spec.floats,
        )
        for group in alone
    )
    return chosen, Scan(layers, everything, total, max_damage, len(rows))
