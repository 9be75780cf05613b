"""What several commands take: each argument with its help, read when it is given and completed by the shell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from cyclopts import Parameter

from flows.command.arguments import utf8


def _ready_recipes(_: object) -> Iterable[str]:
    from flows.command import recipe_files

    return recipe_files.ready_names()


Recipe = Annotated[str, Parameter(help="A ready recipe's name, or a YAML file.", completer=_ready_recipes)]
Changes = Annotated[
    Sequence[str],
    Parameter(
        "--set", metavar="KEY.PATH=VALUE",
        help="Change a field of the recipe, for example training.epochs=2; may be repeated.",
    ),
]  # fmt: skip
Page = Annotated[
    str, Parameter(metavar="FILE", help="Also write the page here, and the JSON document's content beside it.")
]
Model = Annotated[
    str, Parameter(metavar="NAME[@ALIAS]", help="Registered model and alias or version (default: champion).")
]
Run = Annotated[str, Parameter(help="MLflow run id or its beginning (default: latest).")]
Target = Annotated[tuple[str, str], Parameter(metavar="KIND DIR", help="triton, and the model repository.")]
Name = Annotated[str, Parameter(help="Registered model.", converter=utf8)]
Reason = Annotated[str, Parameter(metavar="TEXT", converter=utf8, help="Needed where the verdict is not passed.")]
Column = Annotated[str, Parameter(metavar="COLUMN", converter=utf8)]
Json = Annotated[bool, Parameter(help="Print one JSON document on standard output.")]
