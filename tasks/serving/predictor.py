"""Answers from the folder that this file lies in, with onnxruntime and tokenizers alone.

::

    python predictor.py "an utter delight"      prints the answer as JSON
    python predictor.py --self-test [FOLDER]    checks every file's digest, then the golden rows

An encoder reads a text as a whole and answers once (``Encoder``); a decoder continues it, token by token
(``completions.py`` beside this file). All that differs between the two is in these classes.

B = rows, S = tokens, C = classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from tasks.serving.completions import Completions

TOLERANCE = 0.01
"""Largest difference of a golden answer, in its unit: another CPU's integer kernels round elsewhere."""
DIGITS = 5
"""Of a golden answer, after the point of its unit."""


def num_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use, by its affinity and by its container's limit (cgroups, both versions)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    said = root / "proc" / "self" / "cgroup"
    for line in said.read_text(encoding="utf-8").splitlines() if said.is_file() else ():
        _, controllers, group = line.split(":", 2)
        top = root / "sys" / "fs" / "cgroup" / controllers
        place = top / group.lstrip("/")
        for folder in (place, *place.parents):
            for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
                if all((folder / name).is_file() for name in names):
                    quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
                    if quota not in ("max", "-1"):
                        cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


class Encoder:
    """Of a model that reads a text as a whole. Subclasses turn logits (B, C) into answers.

    Attributes:
        INPUT: the name of what is read.
        unit: what a difference of two answers is measured in.
        options: what may be asked beside texts, with defaults.
    """

    GENERATES: ClassVar = False
    INPUT: ClassVar = "text"
    COLUMNS: ClassVar[dict[str, type]] = {}
    unit = 1.0
    options: Mapping[str, int] = MappingProxyType({})

    def __init__(self, manifest: dict[str, Any]) -> None:
        raise NotImplementedError

    def __call__(self, logits: np.ndarray) -> list[dict[str, Any]]:
        raise NotImplementedError

    def of_argument(self, argument: str) -> Any:
        """What is read where a word of the command line is given."""
        return argument

    def encode(self, model: Predictor, texts: Sequence[Any]) -> list[list[int]]:
        """Token ids of what is read."""
        return model.encode(texts)

    def require(self, model: Predictor, texts: Sequence[Any]) -> None:
        """Refuses no text: a long one is cut, and an empty one is padded."""
        require_strings(texts)

    def predict(self, model: Predictor, texts: Sequence[str]) -> list[dict[str, Any]]:
        return self(model.logits(texts))

    def stream(self, model: Predictor, text: str) -> Iterator[str]:
        raise ValueError("this model answers at once and has nothing to stream; ask predict")

    def golden(self, model: Predictor, text: Any) -> dict[str, Any]:
        """A row of ``golden.json``: a text with its tokens and the answer that it must give."""
        (ids,) = model.encode([text])
        (answer,) = self.predict(model, [text])
        return {"text": text, "input_ids": ids, **rounded(answer, DIGITS - math.floor(math.log10(self.unit)))}

    def check(self, model: Predictor, row: Mapping[str, Any]) -> float:
        """Difference of an answer from a golden row, in ``unit``.

        Raises:
            RuntimeError: it is too large, or a number is missing.
        """
        (found,) = self.predict(model, [row["text"]])
        expected = {name: row[name] for name in self.COLUMNS if name in row}
        difference = distance(expected, found) / self.unit
        if not difference <= TOLERANCE:  # also catches NaN; a label can then only differ in a tie
            raise RuntimeError(f"expected {expected}, found {found}")
        return difference


class Labels(Encoder):
    """Of a classifier: the likeliest ``label``, its probability as ``score``, and ``probabilities`` of all labels."""

    COLUMNS: ClassVar = {"label": str, "score": float, "probabilities": dict}

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.names = manifest["labels"]

    def __call__(self, logits: np.ndarray) -> list[dict[str, Any]]:
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return [
            {
                "label": self.names[int(row.argmax())],
                "score": float(row.max()),
                "probabilities": dict(zip(self.names, map(float, row), strict=True)),
            }
            for row in exponents / exponents.sum(axis=-1, keepdims=True)
        ]


class Scores(Encoder):
    """Of a regression: the ``score``, in the unit of the labels that it was learned from."""

    COLUMNS: ClassVar = {"score": float}

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.mean, self.spread = manifest["answer"]["mean"], manifest["answer"]["spread"]
        self.unit = abs(self.spread)

    def __call__(self, logits: np.ndarray) -> list[dict[str, Any]]:
        return [{"score": self.mean + self.spread * float(row[0])} for row in logits]


def _completions(manifest: dict[str, Any]) -> Completions:
    """Runs ``completions.py`` from where this file is: not every way to start lets it import what lies beside it, and
    an import would leave a compiled copy in the bundle."""
    path = Path(__file__).with_name("completions.py")
    module: Any = ModuleType("completions")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    kind = module.Conversations if "chat" in manifest["answer"] else module.Completions
    found: Completions = kind(manifest)
    return found


ANSWERS: dict[str, Callable[[dict[str, Any]], Encoder | Completions]] = {
    "label": Labels,
    "score": Scores,
    "completion": _completions,
}
"""What a model's logits mean, by the manifest's word for it."""


def answers(manifest: dict[str, Any]) -> Encoder | Completions:
    """What turns texts into answers.

    ``INPUT`` is what is read, ``COLUMNS`` has the fields of answers, ``options`` what may be asked beside texts, and
    ``GENERATES`` says whether a text is continued. Bundles of earlier versions, which do not say, tell labels.
    """
    return ANSWERS[manifest.get("answer", {"kind": "label"})["kind"]](manifest)


class Predictor:
    """A model of texts in ONNX Runtime.

    With dynamically quantized activations, the rows that share a batch share their scales, so a probability can differ
    in its third digit with the company it is computed in.
    """

    def __init__(self, directory: str | Path, *, provider: str = "", threads: int = 0) -> None:
        """Opens the bundle.

        Args:
            directory: the serving bundle.
            provider: execution provider; empty takes the one that the model was validated on.
            threads: CPU threads; 0 takes all cores that this process may use.

        Raises:
            RuntimeError: the provider does not work here. There is no silent fall-back to the CPU.
        """
        self.directory = Path(directory)
        self.manifest = json.loads((self.directory / "manifest.json").read_text(encoding="utf-8"))
        self.answers = answers(self.manifest)
        self.tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        provider = provider or self.manifest["provider"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or num_cores()
        model = str(self.directory / "model.onnx")
        if provider == "CUDAExecutionProvider":
            onnxruntime.preload_dlls()  # finds CUDA where pip put it
        self.session = onnxruntime.InferenceSession(model, options, providers=[provider])
        if provider not in self.session.get_providers():
            raise RuntimeError(f"{provider} does not work on this machine; pass provider='CPUExecutionProvider'")

    def logits(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """What an encoder says of each text: texts (B) → (B, C), in the order of the texts.

        Texts of similar length share a batch, so that little is spent on padding.
        """
        rows = self.encode(texts)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        logits = np.empty((len(rows), len(self.manifest["labels"])), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits[chosen] = self._logits([rows[index] for index in chosen])
        return logits

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut as the model learned texts; what a decoder is to continue is not cut.

        Raises:
            ValueError: one is no text.
        """
        require_strings(texts)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _logits(self, rows: list[list[int]]) -> np.ndarray:
        """Pads one batch on the right, from where positions are counted, and runs it: B lists of ids → (B, C).

        The runtime ends the process on a batch without a single token.
        """
        length = max(1, *(len(row) for row in rows))
        ids = np.full((len(rows), length), self.manifest["padding"]["id"], dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return self.session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    def require(self, texts: Sequence[Any]) -> None:
        """Raises the ``ValueError`` of the first text that ``predict`` would refuse."""
        self.answers.require(self, texts)

    def predict(self, texts: Sequence[Any], **options: int) -> list[dict[str, Any]]:
        """The answer to each text, with the fields of ``answers(manifest).COLUMNS``.

        Args:
            texts: strings; of a model that learned conversations, lists of messages with ``role`` and ``content``.
            options: ``new_tokens`` of a decoder: how many tokens may follow each text.

        Raises:
            ValueError: a text is refused, in a sentence that names its row, or an option is.
        """
        return self.answers.predict(self, texts, **options)

    def stream(self, text: Any, **options: int) -> Iterator[str]:
        """What a decoder continues a text with, piece by piece; together they are the ``completion`` of ``predict``.

        Raises:
            ValueError: as of ``predict``; or the model is no decoder.
        """
        return self.answers.stream(self, text, **options)


def require_strings(texts: Sequence[str]) -> None:
    """Raises ``ValueError`` where one is no text."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"row {position}: text must be a string, not {type(text).__name__}")


def rounded(value: Any, digits: int) -> Any:
    """Numbers of an answer to so many digits after the point."""
    if isinstance(value, dict):
        return {name: rounded(one, digits) for name, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value


def distance(expected: Any, found: Any) -> float:
    """Largest difference of two numbers, or of those that two objects hold by the same names; infinite where there are
    none to compare."""
    if isinstance(expected, dict) and expected:
        return float(np.max([distance(value, found.get(name)) for name, value in expected.items()]))
    if isinstance(expected, str) and isinstance(found, str):
        return 0.0
    return abs(expected - found) if isinstance(expected, int | float) and isinstance(found, float) else math.inf


def self_test(directory: str | Path) -> dict[str, Any]:
    """Checks the digest of every file of a bundle, then the golden rows, one by one.

    Raises:
        RuntimeError: a file is missing or was changed, a golden row came out otherwise, or torch was loaded.
    """
    directory = Path(directory)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise RuntimeError(f"{name} is missing")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise RuntimeError(f"{name} was changed")
    predictor = Predictor(directory)
    golden = json.loads((directory / "golden.json").read_text(encoding="utf-8"))
    worst = 0.0
    for number, row in enumerate(golden):
        (ids,) = predictor.answers.encode(predictor, [row[predictor.answers.INPUT]])
        if ids != row.get("input_ids", ids):  # bundles of earlier versions do not say
            raise RuntimeError(f"golden row {number}: expected the tokens {row['input_ids']}, found {ids}")
        try:
            worst = max(worst, predictor.answers.check(predictor, row))
        except RuntimeError as error:
            raise RuntimeError(f"golden row {number}: {error}") from None
    if heavy := {"torch", "transformers"} & set(sys.modules):
        raise RuntimeError(f"serving loaded {', '.join(sorted(heavy))}")
    return {"golden_rows": len(golden), "max_abs_error": worst, "onnxruntime": onnxruntime.__version__}


def main(arguments: list[str]) -> int:
    directory = Path(__file__).resolve().parent
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "--self-test" and len(arguments) <= 2:
        try:
            print(json.dumps(self_test(arguments[1] if len(arguments) == 2 else directory)))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    try:
        model = Predictor(directory)
        for answer in model.predict(list(map(model.answers.of_argument, arguments))):
            print(json.dumps(answer, ensure_ascii=False))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
