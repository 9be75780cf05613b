"""Where data comes from: ``demo:NAME``, ``hf:NAME[/CONFIG]`` or ``file:PATH``.

``read`` gives the checked rows and ``digest`` the identity of their content, which is cheap and imports no torch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.ml import digests, paths
from tasks.ml.data import demos, table_files, tables

logger = logging.getLogger("featherweight")

KINDS = ("demo", "hf", "file")
FORMS = "demo:NAME, hf:NAME[/CONFIG] or file:PATH"
SPLITS = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "selection"),
    "test": "test",
}
"""What a split is called by others → what it is called here."""


def read(source: str, *, text: str, label: str | None, cache: Path) -> dict[str, tables.Table]:
    """Reads and checks every row of a source; ``label=None`` reads text only.

    Args:
        cache: directory in which the demo's download is kept.

    Returns:
        One table per split that the source itself has (``train``, ``selection``, ``test``), with at least ``train``.

    Raises:
        FeatherweightError: the source is not there, or something in it is not as it should be.
    """
    kind, name = _parse(source)
    if kind == "demo":
        return {"train": demos.read(name, text=text, label=label, cache=cache)}
    if kind == "file":
        return {split: table_files.read(path, text=text, label=label) for split, path in _files(name).items()}
    return from_hub(_load_hub(name), origin=source, text=text, label=label)


def look(source: str, *, cache: Path, most: int, wanted: Sequence[str] = ()) -> tuple[tables.Columns, int]:
    """Reads every column that a recipe can name, of up to ``most`` rows of the train split, unchecked.

    Args:
        cache: as for ``read``.
        wanted: columns that are known to be there.

    Returns:
        The columns, and how many rows the split has.

    Raises:
        FeatherweightError: the source is not there, or cannot be read.
    """
    kind, name = _parse(source)
    if kind == "demo":
        columns = demos.columns(name, cache)
        return columns, len(columns.numbers)
    if kind == "file":
        return table_files.look(_files(name)["train"], most=most, wanted=wanted)
    return look_at_hub(_load_hub(name), origin=source, most=most)


def digest(source: str) -> str:
    """Identity of a source's content: of its files' bytes, of the demo's pinned download, or the hub's commit.

    Raises:
        FeatherweightError: the source is not there.
    """
    kind, name = _parse(source)
    if kind == "demo":
        return f"{name}@{demos.package(name).sha256}"
    if kind == "hf":
        repository, _ = _hub_name(name)
        return f"{name}@{_commit(repository)}"
    content = hashlib.sha256()
    for split, path in _files(name).items():
        content.update(f"{split}{path.suffix.lower()}:{digests.of_file(path)}\n".encode())
    return content.hexdigest()


def _parse(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    if kind not in KINDS or not name:
        raise FeatherweightError(f"data source {source!r} is not understood; write {FORMS}")
    return kind, name


# Files ------------------------------------------------------------------------------------------------------------


def _files(name: str) -> dict[str, Path]:
    """Returns the files of a ``file:`` source by split: one file is ``train``, a folder has a file per split."""
    path = paths.written(name, field="data source")
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise FeatherweightError(
            f"data source {f'file:{name}'!r}: there is no such file or folder (looked for {str(path.absolute())!r})"
        )
    found: dict[str, Path] = {}
    for file in sorted(file for file in path.iterdir() if file.suffix.lower() in table_files.READERS):
        if file.stem.lower() not in SPLITS:
            raise FeatherweightError(
                f"{file}: {file.stem!r} names no split; files in a data folder are called {', '.join(SPLITS)}"
            )
        split = SPLITS[file.stem.lower()]
        if split in found:
            raise FeatherweightError(f"{file}: the {split} split is also in {found[split].name}; keep one of them")
        found[split] = file
    if "train" not in found:
        raise FeatherweightError(
            f"data source {f'file:{name}'!r}: the folder has no train file; "
            f"it needs train{{{','.join(table_files.READERS)}}}, and may have validation and test"
        )
    return found


# The hub ----------------------------------------------------------------------------------------------------------


def _hub_name(name: str) -> tuple[str, str | None]:
    """Splits ``OWNER/NAME[/CONFIG]`` (or a name without owner) into repository and configuration."""
    parts = name.split("/")
    if len(parts) > 3 or not all(parts):
        raise FeatherweightError(f"data source {f'hf:{name}'!r} is not understood; write hf:OWNER/NAME[/CONFIG]")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _unreachable(name: str, error: Exception) -> FeatherweightError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return FeatherweightError(
        f"data source {f'hf:{name}'!r} cannot be had ({reason}); name a public dataset on a hub that can be reached "
        "(hf:OWNER/NAME[/CONFIG]), or use file: with its CSV, JSONL or Parquet files"
    )


def _commit(repository: str) -> str:
    """Commit that a hub dataset is at now; where the hub cannot be reached, the one that was seen last."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # A snapshot is kept in a folder of its commit, also for when the hub is away.
        return Path(hf_hub_download(repository, "README.md", repo_type="dataset")).parent.name
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise _unreachable(repository, error) from None
    except EntryNotFoundError:
        return str(HfApi().dataset_info(repository).sha)
    except HfHubHTTPError as error:
        raise _unreachable(repository, error) from None


def _load_hub(name: str) -> Mapping[str, Any]:
    """Loads a hub dataset at the commit that ``digest`` gives. Dataset scripts are refused by the library."""
    from datasets import load_dataset
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

    repository, config = _hub_name(name)
    commit = _commit(repository)
    try:
        # The prefix says "on the hub": a local folder or loader of the same name is not meant.
        return load_dataset(f"hf://datasets/{repository}", config, revision=commit)
    except (DatasetNotFoundError, DataFilesNotFoundError, DatasetGenerationError, ConnectionError) as error:
        raise _unreachable(name, error) from None
    except (ValueError, RuntimeError) as error:  # an unknown or a missing configuration; a dataset script
        raise _unreachable(name, error) from None


def from_hub(splits: Mapping[str, Any], *, origin: str, text: str, label: str | None) -> dict[str, tables.Table]:
    """Checks the splits of a ``DatasetDict``; class indices become their names.

    Splits whose labels are withheld (all −1, as benchmarks publish their test) and splits of other names are left
    out, with a warning: without them the source is divided like one that never had them.
    """
    wanted = [text] if label is None else [text, label]
    found: dict[str, tables.Table] = {}
    for name, dataset in splits.items():
        place = f"{origin}, {name}"
        tables.require_columns(place, dataset.column_names, wanted)
        values = {column: _named(dataset, column) for column in wanted}
        withheld = label is not None and len(dataset) > 0 and not any(value is not None for value in values[label])
        if withheld or (label and name not in SPLITS):
            reason = "no row has a label" if withheld else f"not one of {', '.join(SPLITS)}"
            logger.warning("%s: split left out: %s", place, reason)
            continue
        split = SPLITS.get(name, name) if label else name
        if split in found:
            logger.warning("%s: split left out: there is another %s split before it", place, split)
            continue
        columns = tables.Columns(place, "row", range(1, len(dataset) + 1), values)
        found[split] = tables.check(columns, text=text, label=label)
    if label and "train" not in found:
        raise _without_train(origin, splits)
    return found


def look_at_hub(splits: Mapping[str, Any], *, origin: str, most: int) -> tuple[tables.Columns, int]:
    """``look`` at the splits of a ``DatasetDict``; images, sound and films are left out."""
    if "train" not in splits:
        raise _without_train(origin, splits)
    places, total = tables.drawn(range(len(splits["train"])), most)
    dataset = splits["train"].select(places)
    media = {name for name, feature in dataset.features.items() if hasattr(feature, "decode_example")}
    values = {column: _named(dataset, column) for column in dataset.column_names if column not in media}
    return tables.Columns(f"{origin}, train", "row", [place + 1 for place in places], values), total


def _without_train(origin: str, splits: Mapping[str, Any]) -> FeatherweightError:
    return FeatherweightError(
        f"data source {origin!r}: there is no train split with labels; its splits are {', '.join(splits)}"
    )


def _named(dataset: Any, column: str) -> list[Any]:
    """Values of a column, class indices by their names."""
    names, values = getattr(dataset.features[column], "names", None), list(dataset[column])
    return [names[index] if index is not None and index >= 0 else None for index in values] if names else values
