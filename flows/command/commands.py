"""The commands of ``featherweight``: what each takes, what it runs, and what it prints.

Each imports what it needs when it runs, so that ``--help`` answers at once, and returns an exit status other than 0.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from flows.command.arguments import Count, Port, Positive, Seconds, Share, one_of, whole
from flows.command.options import Changes, Column, Json, Model, Name, Page, Reason, Recipe, Run, Target

PASSED, NOT_PASSED = 0, 1

app = App(
    name="featherweight",
    help="The lightest language model your quality budget allows, with the evidence beside it.",
    help_format="plaintext",
    version_flags=(),  # a command would inherit them, and end with the version and status 0
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=lambda value: value or None),
)
app.register_install_completion_command(help="Let the shell complete commands, options and ready recipes.")


@app.command(name="--version")
def version() -> None:
    """Show the version and exit."""
    print(importlib.metadata.version("featherweight"))


@app.command
def demo(*, changes: Changes = (), json: Json = False) -> int:
    """Train, shrink, prove and ship a movie-review classifier."""
    return compress("demo", changes=changes, json=json)


@app.command
def init(
    data: str,
    /,
    *,
    text: Column = "",
    label: Column = "",
    problem: str = "",
    base_model: str = "",
    output: Annotated[str, Parameter(metavar="FILE")] = "",
    force: bool = False,
    json: Json = False,
) -> None:
    """Look at data of your own and write a recipe for it.

    Args:
        data: A file or folder (CSV, TSV, JSON, JSON Lines, Parquet), hf:NAME[/CONFIG] or demo:NAME.
        text: Column to read (default: found out).
        label: Column to learn (default: found out).
        problem: How to learn it (default: found out).
        base_model: package:PACKAGE/PATH, a directory, or a hub name (default: that of a recipe).
        output: The recipe to write (default: NAME.yaml in this directory).
        force: Overwrite it.
    """
    from flows.command import init as own

    found = own.begin(data, text=text, label=label, problem=problem, base_model=base_model, output=output, force=force)
    _print(json, own.document(found), lambda: own.show(found))


@app.command
def compress(recipe: Recipe, /, *, changes: Changes = (), json: Json = False) -> int:
    """Run a recipe."""
    from flows.command import console, running

    outcome = running.on_recipe("compress", recipe, changes)
    _print(json, console.document(outcome), lambda: console.print_outcome(outcome))
    return PASSED if outcome.verdict.passed else NOT_PASSED


recipes = App(name="recipe", help="Look at recipes.", help_format="plaintext", version_flags=())
app.command(recipes)


@recipes.command(name="show")
def show_recipe(recipe: Recipe, /, *, changes: Changes = (), json: Json = False) -> None:
    """Print a recipe with every field, saying where each value comes from."""
    from flows.command import recipe_files, recipe_layers

    found = recipe_layers.described(recipe_files.read(recipe, changes), recipe)
    _print(json, found._asdict(), lambda: print(recipe_layers.as_yaml(found)))


@app.command
def study(
    recipe: Recipe = "demo",
    /,
    *,
    preset: Literal["smoke", "small", "full"] = "small",
    target_accuracy: Share = 0,
    seeds: Annotated[int, whole(0, 1_000_000)] = 0,
    output: Page = "",
    changes: Changes = (),
    json: Json = False,
) -> None:
    """Train the same model in many ways and compare them.

    Args:
        preset: How large: a minute, half an hour, or a night on two cores.
        target_accuracy: Accuracy on the selection split to which time is measured, such as 0.8; 0: the preset's.
        seeds: Trials of each choice; 0: the preset's.
    """
    config = {"preset": preset, "target_accuracy": target_accuracy, "seeds": seeds}
    _compare("study", recipe, changes, output, json, config)


@app.command
def ablate(
    recipe: Recipe,
    /,
    *,
    techniques: Annotated[str, Parameter(metavar="NAME,NAME")] = "",
    seeds: Count = 1,
    output: Page = "",
    changes: Changes = (),
    json: Json = False,
) -> None:
    """Measure what each technique of compression is worth in a recipe.

    Args:
        techniques: Measure these only, for example 'hidden states,GPTQ' (default: all).
        seeds: Times that all is made anew.
    """
    names = [name.strip() for name in techniques.split(",") if name.strip()]
    _compare("ablation", recipe, changes, output, json, {"techniques": names, "seeds": seeds})


@app.command
def search(
    recipe: Recipe,
    /,
    *,
    minimize: Annotated[str, one_of("latency", "size")] = "",
    trials: Count | None = None,
    minutes: Positive | None = None,
    target_ms: Positive | None = None,
    target_mb: Positive | None = None,
    finalists: Count | None = None,
    sampler: Annotated[str, one_of("tpe", "nsga2")] = "",
    seed: Annotated[int | None, whole(0, 2**32 - 1)] = None,
    parallel: Count | None = None,
    runner: Annotated[str, one_of("threads", "dask")] = "",
    dask_address: Annotated[str, Parameter(metavar="HOST:PORT")] = "",
    space: Annotated[Sequence[str], Parameter(metavar="KEY.PATH=VALUES")] = (),
    config: Annotated[str, Parameter(metavar="FILE")] = "",
    output: Page = "",
    changes: Changes = (),
    json: Json = False,
) -> int:
    """Find the fastest or smallest model within a recipe's budget.

    Args:
        minimize: p50 of one sentence, or bytes (default: latency).
        trials: Variations to look at (default: 40).
        minutes: Begin no trial after so long (default: no limit).
        target_ms: p50 of one sentence that is allowed.
        target_mb: Size that is allowed.
        finalists: How many the test split judges (default: 3).
        sampler: Optuna's sampler (default: tpe).
        seed: Seeds the sampler (default: 0).
        parallel: Trials at once (default: 1).
        runner: Where trials run (default: threads).
        dask_address: Of a running scheduler (default: workers here).
        space: Values of a field instead of the usual ones, such as pruning.width.keep_ffn=[0.5,0.25]; may be repeated.
        config: YAML with the search's own fields; options go before it.
    """
    from flows.command import recipe_files

    fields = recipe_files.read_mapping(recipe_files.find(config)) if config else {}
    values = {**fields.get("space", {}), **recipe_files.assignments(space, "--space")}
    said = {
        "minimize": minimize, "trials": trials, "minutes": minutes, "target_ms": target_ms, "target_mb": target_mb,
        "finalists": finalists, "sampler": sampler, "seed": seed, "parallel": parallel, "runner": runner,
        "dask_address": dask_address, "space": values,
    }  # fmt: skip
    fields |= {name: value for name, value in said.items() if value not in (None, "")}
    found = _compare("search", recipe, changes, output, json, fields)
    return PASSED if found.winner else NOT_PASSED


@app.command
def runs(*, limit: Annotated[Count, Parameter(help="Newest runs to list.")] = 20, json: Json = False) -> None:
    """List past runs and their verdicts."""
    from flows.command import console, history

    found = history.runs(limit=limit)
    header = ("run", "recipe", "started", "seconds", "status", "verdict")
    _print(json, found, lambda: console.print_table(header, [[str(run[name]) for name in header] for run in found]))


@app.command
def show(run: Run = "", /, *, json: Json = False) -> None:
    """Show what a run came to."""
    from flows.command import console, history

    outcome = history.outcome(run)
    _print(json, console.document(outcome), lambda: console.print_outcome(outcome))


@app.command
def up(
    *, prefect_port: Port = 4200, mlflow_port: Port = 5000, limit: Count = 1, check: bool = False, json: Json = False
) -> None:
    """Run a Prefect server, an MLflow server and a worker on this machine.

    Args:
        limit: Runs to execute at once.
        check: Start everything, see each part answer, end it again.
    """
    from flows.command import console
    from flows.servers import up as servers

    ports = servers.Ports(prefect_port, mlflow_port)
    servers.up(ports, limit=limit, check=check, announce=console.print_json if json else None)


@app.command
def promote(
    name: Name, /, *, version: Annotated[int, whole(0, 2**31 - 1)] = 0, reason: Reason = "", json: Json = False
) -> None:
    """Make a version of a registered model the champion.

    Args:
        version: 0: the candidate, the newest.
    """
    _move(json, "promote", name, version, reason)


@app.command
def rollback(name: Name, /, *, reason: Reason = "", json: Json = False) -> None:
    """Make the champion before the present one the champion again."""
    _move(json, "rollback", name, reason)


@app.command
def serve(model: Model, /, *, host: str = "127.0.0.1", port: Port = 8080, json: Json = False) -> int:
    """Answer over HTTP with a registered model."""
    from flows.command import console, serving

    console.start_logging()
    return serving.serve(model, host=host, port=port, announce=console.print_json if json else None)


@app.command
def deploy(model: Model, /, *, to: Target, json: Json = False) -> None:
    """Write a registered model out for another server."""
    from flows.command import console, serving

    console.start_logging()
    written = serving.write(model, *to)
    _print(json, {"model": str(written)}, lambda: print(f"written: {written}", file=sys.stderr))


@app.command
def xray(
    model: str,
    /,
    *,
    output: Annotated[str, Parameter(metavar="FILE")] = "",
    batch: Annotated[str, Parameter(metavar="N,N")] = "1,8,32",
    length: Annotated[str | None, Parameter(metavar="N,N")] = None,
    training: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    seconds: Seconds = 1.0,
    max_seconds: Seconds = 10.0,
    json: Json = False,
) -> None:
    """Show where a model's compute and memory go, in theory and measured.

    Args:
        model: package:PACKAGE/PATH, a directory with a config.json, or a hub name; its weights are not read.
        output: The page to write (default: xray-NAME.html in this directory).
        batch: Sequences at once, one or more numbers.
        length: Tokens per sequence, one or more numbers (default: 32,128,512, as far as the model has positions).
        training: Measure forward and backward instead of forward alone.
        precision: Of weights and activations.
        seconds: Measure each shape for this long.
        max_seconds: Leave out shapes of which one pass would take longer than this.
    """
    from flows.command import console
    from flows.command import xray as examining

    batches = examining.counts(batch, "--batch")
    lengths = [] if length is None else examining.counts(length, "--length")
    path = examining.output(output, model)
    console.start_logging()
    found = examining.examine(
        model, batches=batches, lengths=lengths, training=training, precision=precision,
        seconds=seconds, max_seconds=max_seconds,
    )  # fmt: skip
    examining.write(found, path)

    def show() -> None:
        examining.print_tables(found)
        print(f"page: {path}")

    _print(json, {**examining.document(found), "page": str(path)}, show)


@app.command
def gc(*, yes: bool = False, unknown: bool = False, json: Json = False) -> None:
    """Show what nobody needs in the home, or remove it.

    Kept is what a run in MLflow that was not deleted came to or can resume from, what a registered version is made of,
    the answers of teachers that are kept, and all that a running command uses. What is removed and wanted again is
    computed again. Deleted runs themselves, and their artifacts, are MLflow's: see 'mlflow gc'.

    Args:
        yes: Remove it.
        unknown: Also what belongs to runs that MLflow does not know, which another MLflow server may.
    """
    from dataclasses import asdict

    from flows.command import console
    from tasks.engine import disk, garbage

    console.start_logging()
    found = garbage.collect(remove=yes, unknown=unknown)
    total = sum(one.num_bytes for one in found)
    rows = [(one.kind, str(one.count), f"{one.num_bytes:,}") for one in found]
    document = {"removed": yes, "num_bytes": total, "garbage": [asdict(one) for one in found]}

    def show() -> None:
        console.print_table(("what nobody needs", "how many", "bytes"), rows, numbers_from=1)
        done = "removed" if yes else "can go; say featherweight gc --yes to remove them" if total else "can go"
        print(f"{total / 1e6:.1f} MB {done}; {sum(disk.usage().values()) / 1e6:.1f} MB are in {disk.home()}")

    _print(json, document, show)


@app.command
def doctor(*, json: Json = False) -> int:
    """Check versions, runtimes, disk and databases."""
    from dataclasses import asdict

    from flows.command import console
    from flows.command import doctor as examining

    findings = examining.examine()
    healthy = all(finding.status != "broken" for finding in findings)
    rows = [(finding.name, finding.status, finding.detail) for finding in findings]
    document = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
    _print(json, document, lambda: console.print_table(("what", "status", "found"), rows))
    return PASSED if healthy else NOT_PASSED


def _print(json: bool, document: Any, show: Callable[[], None]) -> None:
    """Prints a document where one was asked for, and else what people read."""
    from flows.command import console

    if json:
        console.print_json(document)
    else:
        show()


def _move(json: bool, how: str, *given: Any) -> None:
    from flows.command import running

    def prepare() -> Callable[[], Any]:
        from flows import promote

        return lambda: getattr(promote, how)(*given, return_state=True)

    release = running.in_prefect(prepare)
    text = f"{release.name}@champion is version {release.version}"
    _print(json, release.model_dump(mode="json"), lambda: print(text, file=sys.stderr))


def _compare(kind: str, recipe: str, changes: Sequence[str], output: str, json: bool, config: Mapping[str, Any]) -> Any:
    """Runs a flow that compares, shows what it found and returns it."""
    from flows.command import console, running

    path = console.writable(output) if output else None
    found = running.on_recipe(kind, recipe, changes, config)
    from flows.trials import comparing

    module = importlib.import_module(f"flows.{kind}")
    page = comparing.copy(module.sections, found, path) if path else console.report_path(found.run_id)

    def show() -> None:
        module.print_tables(found)
        for remark in module.sections.remarks(found):
            print(remark)
        print(f"\n{module.sections.headline(found)}\npage: {page}")

    _print(json, {**module.sections.document(found), "page": str(page)}, show)
    return found
