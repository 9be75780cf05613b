"""From a torch bundle to an ONNX bundle: an encoder's graph is traced, and a decoder's is built."""

from __future__ import annotations

from pathlib import Path

from tasks.ml.graph import decoder_export, export
from tasks.ml.graph.export import Operators
from tasks.ml.models import architectures, modeling, tokenization
from tasks.ml.models.decoders import Decoder
from tasks.ml.problem import problem_of
from tasks.ml.quantization import block_files


def write(source: Path, directory: Path, *, problem_name: str, opset: int) -> Operators:
    """Writes the graph of a torch bundle, and what goes with it, into an empty directory.

    Args:
        opset: of a graph that is traced.

    Raises:
        FeatherweightError: the graph lacks operators that the architecture and its quantization should give.
    """
    model, spec, problem = modeling.load(source, problem_name), export.read_spec(source), problem_of(problem_name)
    if isinstance(architectures.of_model(model), Decoder):
        codes = block_files.load(source)
        expected = decoder_export.expected_operators(model, codes)
        operators = export.write(decoder_export.build(model, codes), directory, expected=expected)
        decoder_export.describe(model, tokenization.load(source), directory, graph=export.MODEL)
    else:
        operators = export.export_onnx(
            model,
            directory,
            spec=spec,
            inputs=problem.ONNX_INPUTS,
            outputs=problem.ONNX_OUTPUTS,
            opset=opset,
            first_token_only=problem.FIRST_TOKEN_ONLY,
        )
    export.copy_companions(source, directory, spec=spec, operators=operators)
    return operators
