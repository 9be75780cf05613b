"""Builds the serving bundle: a folder that answers with onnxruntime and tokenizers alone.

::

    model.onnx         the graph (and model.onnx.data where the weights are large)
    tokenizer.json     with truncation and padding set as the model was trained
    manifest.json      inputs, outputs, what they mean, versions, the verdict, and the digest of every other file
    golden.json        texts with the tokens and answers that they must give
    predictor.py       answers, and tests itself
    README.md          the model card

A bundle that continues texts also has ``completions.py``, which ``predictor.py`` loads, and, where the source has them,
the files by which onnxruntime-genai opens the folder.

The same model, verdict and versions give the same bytes: no times, run ids or paths.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import tokenizers

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Verdict
from tasks.ml import digests
from tasks.serving import card, completions, predictor

if TYPE_CHECKING:
    from tasks.ml.data.datasets import Golden
    from tasks.ml.problem import Answer

FORMAT = 1
GOLDEN_ROWS = 16
MODEL_FILES = ("model.onnx", "model.onnx.data")
GENAI_FILES = ("genai_config.json", "tokenizer_config.json", "chat_template.jinja")
TOKENIZER_CONFIG, TEMPLATE = GENAI_FILES[1:]
"""What onnxruntime-genai reads beside the graph and ``tokenizer.json``."""
EDGE = 8
"""Tokens at either end of a part of a text that may be others than in the whole: it may begin or end amid a word."""
COMPLETION = {"ends": "eos_token_id", "context": "context_length"}
"""What must be known of a completion, by its name in ``genai_config.json``."""
SCALED_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that take one scale from a whole batch, so that a row's answer depends on the rows beside it."""


def build(
    directory: Path,
    *,
    source: Path,
    name: str,
    problem: str,
    answer: Answer,
    base_model: str,
    data: str,
    tokenizer: tokenizers.Tokenizer,
    golden: Sequence[Golden],
    validation: dict[str, Any],
    verdict: Verdict | None,
) -> None:
    """Fills an empty directory.

    Args:
        source: the ONNX bundle that ``export`` published.
        name: of the registered model.
        answer: what its outputs mean. What it leaves open of a completion is that of ``genai_config.json``.
        base_model: what the teacher was fine-tuned from, for the card.
        data: what it was fine-tuned on, for the card.
        tokenizer: cuts and pads as the model learned texts. A text that is to be continued is served uncut.
        golden: texts, none of them from the test split, with their tokens as the model learned them.
        validation: ``validation.json`` of the stage ``validate``, or as much of the same of another split.
        verdict: ``None`` for a model that was not judged yet.

    Raises:
        FeatherweightError: the model would be served other tokens of a golden text than it learned, or there is no
            golden text that it can answer, or nothing says where a completion ends.
    """
    means = _meaning(answer, source)
    if any(not isinstance(one.text, str) for one in golden):
        means |= _chat(source, tokenizer, means["ends"])
    generates = predictor.answers({"labels": list(answer.labels), "answer": means}).GENERATES
    for file in (*MODEL_FILES, *(GENAI_FILES if generates else ())):
        if (source / file).is_file():
            shutil.copyfile(source / file, directory / file)
    for code in (predictor, *((completions,) if generates else ())):
        shutil.copyfile(str(code.__file__), directory / Path(str(code.__file__)).name)
    served = _uncut(tokenizer) if generates else tokenizer
    served.save(str(directory / "tokenizer.json"), pretty=False)
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    manifest = {
        "format": FORMAT,
        "name": name,
        "problem": problem,
        "labels": list(answer.labels),
        "answer": means,
        **({"max_length": means["context"]} if generates else _cut(tokenizer)),
        **_interface(model),
        "batch_invariant": not any(node.op_type in SCALED_AT_RUN_TIME for node in model.graph.node),
        "provider": validation["device"]["provider"],
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "tokenizers": tokenizers.__version__,
            "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        },
        "verdict": _verdict(verdict),
    }
    _write(directory / "manifest.json", manifest)
    edge = EDGE if generates else 0
    _write(directory / "golden.json", _golden(directory, golden, tokenizer, edge=edge))
    readme = card.render(manifest, purpose=answer.purpose, base_model=base_model, data=data, validation=validation)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    files = {path.name: digests.of_file(path) for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    _write(directory / "manifest.json", manifest | {"files": files})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _interface(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Name, dtype and shape of every input and output; a string is the name of a dynamic axis."""

    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim]}

    return {
        "inputs": [describe(value) for value in model.graph.input],
        "outputs": [describe(value) for value in model.graph.output],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"status": "none", "reason": "none: the test split has not seen this model", "checks": []}
    checks = [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in check.items()}
        for check in (check.model_dump(mode="json") for check in verdict.checks)
    ]
    return {"status": verdict.status.value, "reason": verdict.reason, "checks": checks}


def _meaning(answer: Answer, source: Path) -> dict[str, Any]:
    """What the manifest says of an answer."""
    said: dict[str, Any] = {"kind": answer.kind, **answer.about}
    if answer.kind != "completion":
        return said
    file = source / GENAI_FILES[0]
    described = json.loads(file.read_text(encoding="utf-8"))["model"] if file.is_file() else {}
    for name, theirs in COMPLETION.items():
        if name not in said and theirs not in described:
            raise FeatherweightError(
                f"register: neither the problem's answer has {name!r} nor the exported {file.name} {theirs!r}; one of "
                "them must say it of a model that continues texts"
            )
        said.setdefault(name, described.get(theirs))
    return said | {"ends": [said["ends"]] if isinstance(said["ends"], int) else list(said["ends"])}


def _chat(source: Path, tokenizer: tokenizers.Tokenizer, ends: Sequence[int]) -> dict[str, Any]:
    """What the manifest says of a model that learned conversations: its template, and where an answer ends, which is
    also the special token that the template writes after one."""
    settings = json.loads((source / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    named = {name: value for name, value in settings.items() if name.endswith("_token") and value}
    special = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items()}
    chat = {"template": (source / TEMPLATE).read_text(encoding="utf-8"), "special_tokens": special}
    model = completions.Conversations({"answer": {"chat": chat, "ends": ends, "context": 0, "new_tokens": 0}})
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    rest = model.render([question, answer], asks=False).rpartition("!")[2]
    added = tokenizer.get_added_tokens_decoder().items()
    marks = [(rest.find(token.content), index) for index, token in added if token.special and token.content in rest]
    return {"chat": chat, "ends": sorted({*ends, *(index for _, index in sorted(marks)[:1])})}


def _cut(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """How a tokenizer cuts and pads."""
    padding: Any = tokenizer.padding
    truncation: Any = tokenizer.truncation
    return {
        "max_length": truncation["max_length"],
        "padding": {"id": padding["pad_id"], "token": padding["pad_token"], "side": padding["direction"]},
    }


def _uncut(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, which neither cuts nor pads."""
    found = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    found.no_truncation()
    found.no_padding()
    return found


def _golden(
    directory: Path, golden: Sequence[Golden], tokenizer: tokenizers.Tokenizer, *, edge: int
) -> list[dict[str, Any]]:
    """Each text with the tokens and the answer that it must give, answered alone and on one thread."""
    model = predictor.Predictor(directory, threads=1)
    learned = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    learned.no_padding()
    rows: dict[str, dict[str, Any]] = {}
    for one in golden:
        ids = learned.encode(one.text).ids if isinstance(one.text, str) else model.answers.encode(model, [one.text])[0]
        _require_learned(learned, one, ids, edge=edge)
        row = model.answers.golden(model, one.text)
        if row is not None:
            rows[json.dumps(row[model.answers.INPUT])] = row  # texts that are long may begin with the same words
    if not rows:
        raise FeatherweightError(
            f"register: the model can answer none of {len(golden)} golden texts; give it longer ones"
        )
    return list(rows.values())


def _require_learned(tokenizer: tokenizers.Tokenizer, golden: Golden, ids: Sequence[int], *, edge: int) -> None:
    """Looks whether a text is served as it was learned; one that held tokens which were cut away cannot be."""
    served = [str(tokenizer.id_to_token(index)) for index in ids]
    known = all(tokenizer.token_to_id(token) is not None for token in golden.tokens)
    if known and not _agree(served, golden.tokens, edge):
        raise FeatherweightError(
            f"register: the tokenizer that would be served reads {str(golden.text)[:60]!r} as {_ends(served)}, but the "
            f"model learned it as {_ends(golden.tokens)}; the base model's tokenizer.json and tokenizer_config.json "
            "disagree"
        )


def _agree(served: list[str], learned: list[str], edge: int) -> bool:
    """Whether tokens are the same, or have between their edges the same in a row."""
    if not edge:
        return served == learned
    inner = learned[edge:-edge]
    return any(served[start : start + len(inner)] == inner for start in range(len(served) - len(inner) + 1))


def _ends(tokens: Sequence[str]) -> str:
    """Number of tokens, the first and the last few of them."""
    shown = list(tokens) if len(tokens) <= 8 else [*tokens[:4], "…", *tokens[-4:]]
    return f"{len(tokens)} tokens ({' '.join(shown)})"
