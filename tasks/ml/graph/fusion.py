"""Graph surgery on the exported model: what modules cannot say because it crosses their borders.

Each pass is exact and works on an ``onnx_ir`` graph in place. B = rows, S = tokens, N = heads, D = head size.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from tasks.ml.graph import integers

WIDEST = 2**16
"""Elements of the largest constant that is looked at for another one like it: one per channel."""


def drop_round_trips(graph: ir.Graph) -> None:
    """Removes chains of Reshape that end in the shape they began with: (B, S, N·D) → (B, S, N, D) → (B, S, N·D)."""
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        source = node.inputs[0]
        while source is not None and (above := source.producer()) is not None and above.op_type == "Reshape":
            source = above.inputs[0]
            if source is not None and source.shape is not None and source.shape == node.outputs[0].shape:
                node.outputs[0].replace_all_uses_with(source)


def drop_zero_additions(graph: ir.Graph) -> None:
    """Removes additions of a scalar zero, which stand where ``lowering.Nothing`` stood."""
    for node in list(graph):
        if node.op_type != "Add":
            continue
        for value, other in (node.inputs, node.inputs[::-1]):
            constant = ir.convenience.get_const_tensor(other) if other is not None else None
            if value is not None and constant is not None and constant.size == 1 and not constant.numpy().any():
                node.outputs[0].replace_all_uses_with(value)
                break


def keep_norms_apart(graph: ir.Graph) -> None:
    """Adds residuals with ``Sum``, so that the runtime does not take them into ``SkipLayerNormalization``.

    On a CPU that operator takes its moments one scalar at a time: 51 µs for (27, 384) on one core, where an addition
    and ``LayerNormalization`` take 6.
    """
    for node in graph:
        above = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
        if above is not None and above.op_type == "Add":
            above.op_type = "Sum"


def fuse(model: ir.Model, *, for_cpu: bool) -> None:
    """Runs all passes, in place, and leaves a graph without leftovers or paths of the machine that exported.

    Args:
        for_cpu: whether the graph is for CPUs only, as integer graphs are. What else runs it fuses residuals well.
    """
    drop_round_trips(model.graph)
    drop_zero_additions(model.graph)
    # Query, key and value of a layer read the same divided by the same: as one product they can be packed.
    ir.passes.Sequential(
        common.DeduplicateInitializersPass(size_limit=WIDEST), common.CommonSubexpressionEliminationPass()
    )(model)
    integers.pack_attention(model.graph)
    if for_cpu:
        keep_norms_apart(model.graph)
    cleanup = ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),  # the exporter notes the source line of every node
    )
    cleanup(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
