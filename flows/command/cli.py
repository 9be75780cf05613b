"""The command ``featherweight``. Imports what a command needs when it runs, so that ``--help`` answers at once.

Exit status: 0 passed, 1 verdict not passed or something is broken, 2 bad input, 3 unexpected error, 4 nothing can be
written to the home or another disk, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.command import arguments
from flows.command.arguments import COUNT, PORT

if TYPE_CHECKING:
    from prefect.states import State

    from tasks.contracts.values import Outcome

PASSED, NOT_PASSED, BAD_INPUT, UNEXPECTED, DISK, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = parser().parse_args(arguments)
    from flows.servers import embedded
    from tasks.engine import disk

    try:
        embedded.configure()  # looks for the password of this home's servers
        if options.run is not _doctor:  # which looks for itself
            disk.require_home()
        return int(options.run(options))
    except KeyboardInterrupt:
        kept = "; finished stages are kept and will be reused" if "changes" in options else ""  # of a recipe
        return _failed(INTERRUPTED, f"interrupted{kept}", as_json=options.json)
    except Exception as error:
        return _failed(*_explained(error), as_json=options.json)
    finally:
        gc.freeze()  # all of it goes with the process; looking through it first would take half a second


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit status, and what went wrong, beginning at the cause that the user can mend, if there is one."""
    from tasks.contracts.base import FeatherweightError
    from tasks.engine import disk

    if what := disk.trouble(error):
        return DISK, what
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FeatherweightError):
            return BAD_INPUT, str(cause)
        cause = cause.__cause__ or cause.__context__
    try:
        disk.require_home()  # a server on the same disk says only that it failed
    except disk.HomeError as full:
        return DISK, str(full)
    from flows.command import console

    console.keep(error)
    summary = " ".join(str(error).split())[:300]
    return UNEXPECTED, f"unexpected {type(error).__name__}: {summary}\nsee {console.log_path()}"


def _failed(status: int, text: str, *, as_json: bool) -> int:
    """Says what went wrong, where a document was asked for also in one, and returns the exit status."""
    from flows.command import console
    from tasks.engine.redaction import hide

    lines = [arguments.line(line) for line in hide(text).strip().split("\n")]
    for line in lines:
        print(f"featherweight: {line}", file=sys.stderr)
    if as_json:
        console.print_json({"error": "\n".join(lines), "exit_status": status})
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = arguments.Parser(
        prog="featherweight",
        description="The lightest language model your quality budget allows, with the evidence beside it.",
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _compress, "train, shrink, prove and ship a movie-review classifier")
    demo.set_defaults(recipe="demo")
    compress = command("compress", _compress, "run a recipe")
    compress.add_argument("recipe", metavar="RECIPE", help="a ready recipe's name, or a YAML file")
    study = command("study", _study, "train the same model in many ways and compare them")
    study.add_argument(
        "recipe", metavar="RECIPE", nargs="?", default="demo", help="where data and model come from (default: demo)"
    )
    study.add_argument(
        "--preset", choices=("smoke", "small", "full"), default="small",
        help="how large: a minute, half an hour, or a night on two cores (default: small)",
    )  # fmt: skip
    study.add_argument(
        "--target-accuracy", type=arguments.share, default=0, metavar="A",
        help="accuracy on the selection split to which time is measured, such as 0.8 (default: the preset's)",
    )  # fmt: skip
    study.add_argument(
        "--seeds",
        type=arguments.whole(0, 1_000_000),
        default=0,
        metavar="N",
        help="trials of each choice (default: the preset's)",
    )
    study.add_argument(
        "--output", default="", metavar="FILE", help="also write the page here, and study.json's content beside it"
    )
    ablate = command("ablate", _ablate, "measure what each technique of compression is worth in a recipe")
    ablate.add_argument("recipe", metavar="RECIPE", help="a ready recipe's name, or a YAML file")
    ablate.add_argument(
        "--techniques", type=arguments.names, metavar="NAME,NAME",
        help="measure these only, for example 'hidden states,GPTQ' (default: all)",
    )  # fmt: skip
    ablate.add_argument("--seeds", type=COUNT, metavar="N", help="times that all is made anew (default: 1)")
    ablate.add_argument(
        "--output", default="", metavar="FILE", help="also write the page here, and ablation.json's content beside it"
    )
    search = command("search", _search, "find the fastest or smallest model within a recipe's budget")
    search.add_argument("recipe", metavar="RECIPE", help="a ready recipe's name, or a YAML file")
    search.add_argument(
        "--minimize", choices=("latency", "size"), help="p50 of one sentence, or bytes (default: latency)"
    )
    search.add_argument("--trials", type=COUNT, metavar="N", help="variations to look at (default: 40)")
    search.add_argument(
        "--minutes", type=arguments.positive, metavar="M", help="begin no trial after so long (default: no limit)"
    )
    search.add_argument(
        "--target-ms", type=arguments.positive, metavar="MS", help="p50 of one sentence that is allowed"
    )
    search.add_argument("--target-mb", type=arguments.positive, metavar="MB", help="size that is allowed")
    search.add_argument("--finalists", type=COUNT, metavar="N", help="how many the test split judges (default: 3)")
    search.add_argument("--sampler", choices=("tpe", "nsga2"), help="Optuna's sampler (default: tpe)")
    search.add_argument(
        "--seed", type=arguments.whole(0, 2**32 - 1), metavar="N", help="seeds the sampler (default: 0)"
    )
    search.add_argument("--parallel", type=COUNT, metavar="N", help="trials at once (default: 1)")
    search.add_argument("--runner", choices=("threads", "dask"), help="where trials run (default: threads)")
    search.add_argument("--dask-address", metavar="HOST:PORT", help="of a running scheduler (default: workers here)")
    search.add_argument(
        "--space", action="append", default=[], metavar="KEY.PATH=VALUES",
        help="values of a field instead of the usual ones, for example pruning.keep_ffn=[0.5,0.25]; may be repeated",
    )  # fmt: skip
    search.add_argument(
        "--config", default="", metavar="FILE", help="YAML with the search's own fields; options go before it"
    )
    search.add_argument(
        "--output", default="", metavar="FILE", help="also write the page here, and search.json's content beside it"
    )
    for sub in (demo, compress, study, ablate, search):
        sub.add_argument(
            "--set", dest="changes", action="append", default=[], metavar="KEY.PATH=VALUE",
            help="change a field of the recipe, for example training.epochs=2; may be repeated",
        )  # fmt: skip
    runs = command("runs", _runs, "list past runs and their verdicts")
    runs.add_argument("--limit", type=COUNT, default=20, metavar="N", help="newest runs to list (default: 20)")
    show = command("show", _show, "show what a run came to")
    show.add_argument(
        "of", nargs="?", default="", metavar="RUN", help="MLflow run id or its beginning (default: latest)"
    )
    up = command("up", _up, "run a Prefect server, an MLflow server and a worker on this machine")
    up.add_argument("--prefect-port", type=PORT, default=4200, metavar="PORT", help="default: 4200")
    up.add_argument("--mlflow-port", type=PORT, default=5000, metavar="PORT", help="default: 5000")
    up.add_argument("--limit", type=COUNT, default=1, metavar="N", help="runs to execute at once (default: 1)")
    up.add_argument("--check", action="store_true", help="start everything, see each part answer, end it again")
    promote = command("promote", _promote, "make a version of a registered model the champion")
    promote.add_argument("name", metavar="NAME", help="registered model")
    promote.add_argument(
        "--version",
        type=arguments.whole(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="default: the candidate, the newest",
    )
    rollback = command("rollback", _rollback, "make the champion before the present one the champion again")
    rollback.add_argument("name", metavar="NAME", help="registered model")
    for sub in (promote, rollback):
        sub.add_argument("--reason", default="", metavar="TEXT", help="needed where the verdict is not passed")
    serve = command("serve", _serve, "answer over HTTP with a registered model")
    serve.add_argument(
        "model", metavar="NAME[@ALIAS]", help="registered model and alias or version (default: champion)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    serve.add_argument("--port", type=PORT, default=8080, metavar="PORT", help="default: 8080")
    deploy = command("deploy", _deploy, "write a registered model out for another server")
    deploy.add_argument(
        "model", metavar="NAME[@ALIAS]", help="registered model and alias or version (default: champion)"
    )
    deploy.add_argument(
        "--to", nargs=2, required=True, metavar=("KIND", "DIR"), help="triton, and the model repository"
    )
    xray = command("xray", _xray, "show where a model's compute and memory go, in theory and measured")
    xray.add_argument(
        "model", metavar="MODEL",
        help="package:PACKAGE/PATH, a directory with a config.json, or a hub name; its weights are not read",
    )  # fmt: skip
    xray.add_argument(
        "--output", default="", metavar="FILE", help="the page to write (default: xray-NAME.html in this directory)"
    )
    xray.add_argument("--batch", metavar="N,N", help="sequences at once, one or more numbers (default: 1,8,32)")
    xray.add_argument(
        "--length", metavar="N,N",
        help="tokens per sequence, one or more numbers (default: 32,128,512, as far as the model has positions)",
    )  # fmt: skip
    xray.add_argument("--training", action="store_true", help="measure forward and backward instead of forward alone")
    xray.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of weights and activations (default: fp32)"
    )
    xray.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=1.0,
        metavar="S",
        help="measure each shape for this long (default: 1)",
    )
    xray.add_argument(
        "--max-seconds", type=arguments.seconds, default=10.0, metavar="S",
        help="leave out shapes of which one pass would take longer than this (default: 10)",
    )  # fmt: skip
    command("doctor", _doctor, "check versions, runtimes, disk and databases")
    return top


class _Version(argparse.Action):
    """``--version``, looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import importlib.metadata

        print(importlib.metadata.version("featherweight"))
        parser.exit()


def _compress(options: argparse.Namespace) -> int:
    from flows.command import console

    outcome = run(options.recipe, options.changes)
    if options.json:
        console.print_json(console.document(outcome))
    else:
        console.print_outcome(outcome)
    return PASSED if outcome.verdict.passed else NOT_PASSED


def run(recipe: str, changes: Sequence[str] = ()) -> Outcome:
    """Runs a recipe in this process, under an embedded Prefect API where no server is configured.

    Raises:
        FeatherweightError: the recipe, the data or the base model is not right.
    """
    from flows.command import recipe_files

    values = recipe_files.read(recipe, changes)

    def prepare() -> Callable[[], Any]:
        loaded = recipe_files.validate(values, recipe)
        from flows.compress import compress

        return lambda: compress(loaded, return_state=True)

    outcome: Outcome = _in_prefect(prepare, heavy=True)
    return outcome


def _in_prefect(prepare: Callable[[], Callable[[], State[Any]]], *, heavy: bool = False) -> Any:
    """Runs a flow in this process and returns its result.

    Prefect and MLflow are imported, and a fresh MLflow database is migrated, while an embedded API starts.

    Args:
        prepare: imports the flow, and returns what calls it.
        heavy: whether the flow needs what the stages import, unless all is cached.
    """
    from flows.command import console
    from flows.servers import embedded

    with embedded.api() as server:
        with embedded.quick_imports():
            call = prepare()
            from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

            from tasks.engine import tracking

            tracking.client()
            if heavy and server is not None and server.is_first_start:
                # Nothing is cached in a new home, so what the stages import is wanted, and there is time now.
                import tasks.ml.models.modeling  # noqa: F401
        console.start_logging()
        if server is None:
            embedded.require_server()
            return _result(call())
        server.wait()
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # no one listens, and stopping takes 1 s
            return _result(call())


def _result(state: State[Any]) -> Any:
    """Takes the result out of a flow's final state, which holds one also when the verdict was not passed."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result


def _runs(options: argparse.Namespace) -> int:
    from flows.command import console, history

    runs = history.runs(limit=options.limit)
    if options.json:
        console.print_json(runs)
    else:
        header = ("run", "recipe", "started", "seconds", "status", "verdict")
        console.print_table(header, [[str(run[name]) for name in header] for run in runs])
    return PASSED


def _show(options: argparse.Namespace) -> int:
    from flows.command import console, history

    outcome = history.outcome(options.of)
    if options.json:
        console.print_json(console.document(outcome))
    else:
        console.print_outcome(outcome)
    return PASSED


def _up(options: argparse.Namespace) -> int:
    from flows.servers import up as servers

    servers.up(
        servers.Ports(options.prefect_port, options.mlflow_port), limit=options.limit, check=options.check,
        announce=_announcing(options),
    )  # fmt: skip
    return PASSED


def _announcing(options: argparse.Namespace) -> Callable[[Mapping[str, Any]], None] | None:
    """What tells where a server answers, as the one document of a command that only an interrupt ends."""
    from flows.command import console

    def announce(facts: Mapping[str, Any]) -> None:
        console.print_json(facts)
        options.json = False

    return announce if options.json else None


def _promote(options: argparse.Namespace) -> int:
    def prepare() -> Callable[[], Any]:
        from flows.promote import promote

        return lambda: promote(options.name, options.version, options.reason, return_state=True)

    return _moved(prepare, options)


def _rollback(options: argparse.Namespace) -> int:
    def prepare() -> Callable[[], Any]:
        from flows.promote import rollback

        return lambda: rollback(options.name, options.reason, return_state=True)

    return _moved(prepare, options)


def _moved(prepare: Callable[[], Callable[[], Any]], options: argparse.Namespace) -> int:
    from flows.command import console

    release = _in_prefect(prepare)
    if options.json:
        console.print_json(release.model_dump(mode="json"))
    else:
        print(f"{release.name}@champion is version {release.version}", file=sys.stderr)
    return PASSED


def _serve(options: argparse.Namespace) -> int:
    from flows.command import console, serving

    console.start_logging()
    return serving.serve(options.model, host=options.host, port=options.port, announce=_announcing(options))


def _deploy(options: argparse.Namespace) -> int:
    from flows.command import console, serving

    console.start_logging()
    kind, directory = options.to
    written = serving.write(options.model, kind, directory)
    if options.json:
        console.print_json({"model": str(written)})
    else:
        print(f"written: {written}", file=sys.stderr)
    return PASSED


def _xray(options: argparse.Namespace) -> int:
    from flows.command import console, xray

    batches = [1, 8, 32] if options.batch is None else xray.counts(options.batch, "--batch")
    lengths = [] if options.length is None else xray.counts(options.length, "--length")
    path = xray.output(options.output, options.model)
    console.start_logging()
    found = xray.examine(
        options.model, batches=batches, lengths=lengths, training=options.training, precision=options.precision,
        seconds=options.seconds, max_seconds=options.max_seconds,
    )  # fmt: skip
    xray.write(found, path)
    if options.json:
        console.print_json({**xray.document(found), "page": str(path)})
    else:
        xray.print_tables(found)
        print(f"page: {path}")
    return PASSED


def _study(options: argparse.Namespace) -> int:
    _compare(options, "study")
    return PASSED


def _ablate(options: argparse.Namespace) -> int:
    _compare(options, "ablation")
    return PASSED


def _search(options: argparse.Namespace) -> int:
    from flows.command import recipe_files

    fields = recipe_files.read(options.config) if options.config else {}
    options.space = {**fields.pop("space", {}), **recipe_files.assignments(options.space, "--space")}
    return PASSED if _compare(options, "search", fields).winner else NOT_PASSED


def _compare(options: argparse.Namespace, kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Runs a flow that compares, of the same name as its module, shows what it found and returns it.

    Args:
        fields: of the flow's config, where no option says otherwise.
    """
    import importlib

    from flows.command import console, recipe_files

    values = recipe_files.read(options.recipe, options.changes)
    path = console.writable(options.output) if options.output else None
    module: Any = None

    def prepare() -> Callable[[], Any]:
        nonlocal module
        recipe = recipe_files.validate(values, options.recipe)
        module = importlib.import_module(f"flows.{kind}")
        said = {name: getattr(options, name, None) for name in module.CONFIG.model_fields}
        config = module.checked(
            {**(fields or {}), **{name: value for name, value in said.items() if value is not None}}
        )
        return lambda: getattr(module, kind)(recipe, config, return_state=True)

    found = _in_prefect(prepare, heavy=True)
    from flows.trials import comparing

    page = comparing.copy(module.sections, found, path) if path else console.report_path(found.run_id)
    if options.json:
        console.print_json({**module.sections.document(found), "page": str(page)})
    else:
        module.print_tables(found)
        print(f"page: {page}")
    return found


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from flows.command import console, doctor

    findings = doctor.examine()
    healthy = all(finding.status != "broken" for finding in findings)
    if options.json:
        console.print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        console.print_table(("what", "status", "found"), [(f.name, f.status, f.detail) for f in findings])
    return PASSED if healthy else NOT_PASSED


if __name__ == "__main__":
    sys.exit(main())
