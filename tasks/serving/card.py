"""The model card: what the model is, what it was measured to do, and how to run it."""

from __future__ import annotations

from typing import Any

from tasks.reporting.markdown import code, text
from tasks.reporting.numbers import capital
from tasks.serving import completions, predictor

USAGE = """\
from predictor import Predictor

texts = ["an utter delight", "a waste of an evening"]
for text, answer in zip(texts, Predictor(".").predict(texts)):
    print(answer, text)
"""

GENERATING_USAGE = """\
from predictor import Predictor

model = Predictor(".")
text = "an utter delight"
print(model.predict([text], new_tokens=16)[0])
for piece in model.stream(text, new_tokens=16):
    print(piece, end="", flush=True)
"""

ANSWERING_USAGE = GENERATING_USAGE.replace(
    'text = "an utter delight"', 'text = [{"role": "user", "content": "Is it an utter delight?"}]'
)

CARD = """\
# {name}

{purpose}{labels}. Compressed with Featherweight from a teacher that was
fine-tuned from {base_model} on {data}. {reads}

## What was measured

| | teacher | this model |
|---|---|---|
{measured}

{metric} over the {n} rows of {split}. Latency of one real
sentence at batch 1, on {machine}.

{checks}Verdict: {reason}.

## Run it

`pip install {packages}`, then in this folder:

```python
{usage}```

{predictor} needs no more than that, and shows how texts become inputs and logits an answer; it also runs by itself
(`python predictor.py "an utter delight"`), and `python predictor.py --self-test` verifies every file's digest and the
golden rows. From MLflow, by the alias it was deployed to:

```sh
mlflow models serve -m "models:/{name}@champion" --env-manager local -p 5001
curl localhost:5001/invocations -H 'Content-Type: application/json' \\
  -d '{{"dataframe_records": [{example}]{options}}}'
```

## Files

| file | what it is |
|---|---|
| `model.onnx` | the graph, opset {opset}; inputs {inputs}; {outputs} |
| `tokenizer.json` | {tokenizer} |
| `manifest.json` | inputs, outputs and what they mean, versions, verdict, digest of every file |
| `golden.json` | {golden} |
| {predictor} | answers with onnxruntime and tokenizers alone |

## Limits

It knows the domain and language of its training data and no other; what was measured says nothing about other text.
{limits}
"""

CHECKS = """\
| check | measured | interval | limit | n | status |
|---|---|---|---|---|---|
{rows}

"""

PACKAGES, EXAMPLE = "onnxruntime tokenizers numpy", '{"text": "an utter delight"}'

SPLITS = {
    "test": "the test split, which nothing before this measurement had seen",
    "selection": "the selection split, by which the model was chosen among others: on new text expect less",
}

BATCHES = {
    True: "A text gets the same answer whatever texts share its batch.",
    False: "Activations are quantized over a whole batch, so an answer differs slightly with the texts beside it.",
}

NO_TOKEN = "A batch of your own needs at least one row and one token: onnxruntime ends its process on none."


def _encoder(manifest: dict[str, Any]) -> dict[str, str]:
    """What the card says of a model that reads a text as a whole."""
    return {
        "labels": f": {', '.join(map(code, manifest['labels']))}",
        "reads": f"Texts are cut after {manifest['max_length']} tokens.",
        "usage": USAGE,
        "packages": PACKAGES,
        "example": EXAMPLE,
        "options": "",
        "predictor": "`predictor.py`",
        "inputs": ", ".join(map(_tensor, manifest["inputs"])),
        "outputs": "output `logits`",
        "tokenizer": "with truncation and padding set",
        "golden": "texts of the selection split, an empty and a long one, with the tokens and answers to give",
        "limits": f"{BATCHES[manifest['batch_invariant']]} {NO_TOKEN}",
    }


def _decoder(manifest: dict[str, Any]) -> dict[str, str]:
    """What the card says of a model that continues a text."""
    answer = manifest["answer"]
    tensors = [one for one in manifest["inputs"] if not one["name"].startswith(completions.PAST)]
    cache = [one for one in manifest["inputs"] if one["name"].startswith(completions.PAST)]
    return {
        "labels": f", by its likeliest next token each time, {answer['new_tokens']} times unless asked otherwise",
        "reads": f"A text and what continues it have at most {answer['context']} tokens together; a text that leaves "
        "no room is refused.",
        "usage": GENERATING_USAGE,
        "packages": PACKAGES,
        "example": EXAMPLE,
        "options": ', "params": {"new_tokens": 16}',
        "predictor": "`predictor.py` with `completions.py`",
        "inputs": f"{', '.join(map(_tensor, tensors))}, and a cache of {len(cache)} tensors, the first of them "
        f"{_tensor(cache[0])}",
        "outputs": f"outputs `logits` and the cache with the new tokens, `{completions.PRESENT}…`",
        "tokenizer": "which neither cuts nor pads",
        "golden": "beginnings of texts of the selection split, with the tokens that must follow, and by how many nats "
        "each is likelier than the next best: on another processor a near tie may fall otherwise",
        "limits": "What it writes is likely and not for that true. Each text is continued alone, so that no other "
        "changes its answer. With cached tokens the graph reads several new ones of one text only; rows of a batch of "
        "your own are padded on the right.",
    }


def _assistant(manifest: dict[str, Any]) -> dict[str, str]:
    """What the card says of a model that answers in a conversation."""
    return _decoder(manifest) | {
        "reads": f"A conversation, as the chat template writes it, and the answer have at most "
        f"{manifest['answer']['context']} tokens together; one that leaves no room is refused.",
        "usage": ANSWERING_USAGE,
        "packages": f"{PACKAGES} jinja2",
        "example": '{"messages": [{"role": "user", "content": "Is it an utter delight?"}]}',
        "golden": "what comes before an answer in conversations of the selection split, with the tokens that must "
        "follow, and by how many nats each is likelier than the next best: on another processor a near tie may fall "
        "otherwise",
    }


def _tensor(value: dict[str, Any]) -> str:
    return f"`{value['name']}` {value['dtype']}{value['shape']}"


ROWS = (
    ("Size, MB", "size_mb", "{:.2f}"),
    ("Parameters", "num_parameters", "{:,}"),
    ("Latency p50, ms", "latency_p50_ms", "{:.2f}"),
    ("Latency p95, ms", "latency_p95_ms", "{:.2f}"),
    ("Latency p99, ms", "latency_p99_ms", "{:.2f}"),
    ("Throughput, rows/s", "throughput_per_s", "{:,.0f}"),
    ("Load time, s", "load_time_s", "{:.2f}"),
    ("Peak memory, MB", "peak_memory_mb", "{:.0f}"),
    ("Runtime", "runtime", "{}"),
)


def render(manifest: dict[str, Any], *, purpose: str, base_model: str, data: str, validation: dict[str, Any]) -> str:
    """Returns the card of a serving bundle, as Markdown.

    Args:
        purpose: what the model tells of a text, in words that come before the names of its outputs.
    """
    models = {model["stage"]: model for model in validation["models"]}
    teacher, shipped = models["train"], models["validate"]
    device, checks = validation["device"], manifest["verdict"]["checks"]
    answers = predictor.answers(manifest)
    words = _assistant if answers.INPUT == "messages" else _decoder if answers.GENERATES else _encoder
    metric = capital(shipped["metric"])
    return CARD.format(
        name=manifest["name"],
        purpose=purpose,
        metric=metric,
        base_model=code(base_model),
        data=code(data),
        measured="\n".join(
            f"| {title} | {_cell(teacher, key, form)} | {_cell(shipped, key, form)} |"
            for title, key, form in ((metric, "quality", "{:.4f}"), *ROWS)
        ),
        n=validation["n"],
        machine=text(f"{device.get('gpu') or device['cpu_model']}, {device['threads']} threads, {device['provider']}"),
        split=SPLITS[validation["split"]],
        checks=CHECKS.format(rows="\n".join(map(_check, checks))) if checks else "",
        reason=text(manifest["verdict"]["reason"]),
        opset=manifest["versions"]["opsets"]["ai.onnx"],
        **words(manifest),
    )


def _cell(model: dict[str, Any], key: str, form: str) -> str:
    value = model.get(key)
    return "–" if value is None else form.format(value)


def _check(check: dict[str, Any]) -> str:
    limit = f"{'≤' if check['direction'] == 'at_most' else '≥'} {check['limit']:g}"
    return (
        f"| {check['name']} | {check['measured']:.4g} | {check['low']:.4g} to {check['high']:.4g} | {limit} "
        f"| {check['n']} | {check['status']} |"
    )
