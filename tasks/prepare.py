"""prepare: reads and checks the data, splits it by content hash, tokenizes it once, publishes Arrow."""

from __future__ import annotations

import functools
import json
import logging
from typing import Annotated, Any

from pydantic import Field

from tasks.contracts.base import PlainText, StageConfig
from tasks.contracts.values import Scorecard, Splits, StageOutput
from tasks.engine import disk, store, tracking
from tasks.engine.keys import Outside
from tasks.engine.stage import stage

logger = logging.getLogger("featherweight")


def _rows_digest(source: str) -> str:
    from tasks.ml.data import sources

    return sources.digest(source)


def _tokenizer_digest(base_model: str) -> str:
    from tasks.ml.models import locators

    return locators.directory_digest(locators.locate(base_model), weights=False)


Source = Annotated[str, Outside(_rows_digest)]


class DataConfig(StageConfig):
    """Where the rows are and how they are divided."""

    source: Source = Field("demo:movie-snippets", title="Source", min_length=1)
    """demo:NAME, hf:NAME[/CONFIG] or file:PATH (CSV, TSV, JSON, JSON Lines or Parquet; one file, or a folder with one
    per split)."""
    text: PlainText = Field("text", title="Text column", min_length=1)
    """Name of the column that holds the text, or for causal-lm conversations as lists of messages."""
    label: PlainText = Field("label", title="Label column", min_length=1)
    """Name of the column that holds the label."""
    unlabeled: Source = Field("", title="Unlabeled source")
    """More text, without labels, to distil the teacher's knowledge on; a source as above, or empty."""
    max_rows: int = Field(0, ge=0, title="Row limit")
    """Rows with labels to use, and as many without; the same ones each time. 0 uses all."""
    max_length: int = Field(64, ge=8, le=8192, title="Maximum length")
    """Tokens after which a text is cut, and a conversation at its end."""
    test_fraction: float = Field(0.2, gt=0, lt=0.6, title="Test fraction")
    """Fraction of rows kept for the final judgement."""
    selection_fraction: float = Field(0.08, gt=0, lt=0.4, title="Selection fraction")
    """Fraction of rows that early stopping and choices look at."""
    calibration_fraction: float = Field(0.02, gt=0, lt=0.4, title="Calibration fraction")
    """Fraction of rows that pruning and quantization look at."""


@stage
def prepare(
    config: DataConfig, *, problem: PlainText, base_model: Annotated[str, Outside(_tokenizer_digest)]
) -> StageOutput:
    """Reads and checks the rows, divides them by content, and encodes them with the base model's tokenizer."""
    from tasks.ml.data import conversations, datasets, sources, splitting
    from tasks.ml.models import architectures, inspection, locators, tokenization
    from tasks.ml.problem import problem_of

    base = locators.locate(base_model)
    settings = inspection.settings(base)
    locators.require_positions(base, config.max_length)
    tokenizer = tokenization.load(base, max_length=config.max_length)
    inspection.require_rows(tokenizer, settings, base)
    architectures.of(settings["model_type"]).require_padding(settings, tokenizer.pad_token_id)
    cache = disk.home() / "cache"
    kind = problem_of(problem)
    label = None if kind.LEARNS is None else config.label
    rendered = functools.partial(conversations.rendered, tokenizer=tokenizer, completes=kind.PER_TOKEN)
    targets = kind.targets(rendered(sources.read(config.source, text=config.text, label=label, cache=cache)))
    unlabeled = sources.read(config.unlabeled, text=config.text, label=None, cache=cache) if config.unlabeled else {}
    more = rendered(unlabeled)
    as_read = functools.partial(datasets.as_read, tokenizer=tokenizer, max_length=config.max_length)
    division = splitting.divide(
        targets,
        more.values(),
        test=config.test_fraction,
        selection=config.selection_fraction,
        calibration=config.calibration_fraction,
        max_rows=config.max_rows,
        # Texts that become several rows are read whole, and told apart by whatever they have.
        read=as_read if targets.of_text is None else splitting.keys,
    )
    with store.workspace() as directory:
        profile = datasets.write(
            directory,
            division,
            tokenizer,
            max_length=config.max_length,
        )
        digest = store.publish(directory)
    num_rows = _log(profile, config.max_length)
    splits = Splits(digest=digest, problem=str(problem))
    return StageOutput(splits=splits, scorecard=Scorecard(num_rows=num_rows), evidence=digest)


def _log(profile: dict[str, Any], max_length: int) -> int:
    """Logs the profile of a dataset and returns its number of rows."""
    from tasks.ml.data import legibility

    rows = {name: split["rows"] for name, split in profile["splits"].items()}
    balance = profile["splits"]["test"]["labels"]
    run = tracking.current()
    run.text(json.dumps(profile, indent=1, ensure_ascii=False), "profile.json")
    run.metrics(
        {f"rows_{name}": count for name, count in rows.items()}
        | {f"dropped_{reason}": count for reason, count in profile["dropped"].items()}
        | {f"tokens_mean_{name}": split["tokens_mean"] for name, split in profile["splits"].items()}
        | {"majority_share_test": max(balance.values()) / rows["test"]}
    )
    labelled = [split for split in profile["splits"].values() if split["labels"]]
    cut, total = (sum(split[name] for split in labelled) for name in ("rows_cut", "rows"))
    logger.info(
        "prepare: %s; labels in test: %s; dropped: %s; cut at %d tokens: %s",
        ", ".join(f"{name} {count}" for name, count in rows.items() if count),
        ", ".join(f"{label} {count}" for label, count in balance.items()),
        ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in profile["dropped"].items() if count)
        or "none",
        max_length,
        cut or "none",
    )
    if cut > total * (1 - legibility.WHOLE):
        logger.warning(
            "prepare: %d of %d texts (%.1f%%) are longer than data.max_length, %d tokens, and are cut; "
            "95%% have at most %d",
            *(cut, total, 100 * cut / total, max_length, profile["tokens_at_95_percent"]),
        )
    for warning in profile["warnings"]:
        logger.warning("prepare: %s", warning)
    return sum(rows.values())
