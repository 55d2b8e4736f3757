"""What can be said to `graphbit`, and how it ends.

Exit codes: 0 all went well; 1 a run failed, a workflow is not sound, something is missing; 2 what was said cannot be meant;
130 Ctrl-C. An error is one line on the standard error, `error: …`; `--debug` shows the traceback as well.
Results go to the standard output; progress and errors do not.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from graphbit._version import __version__
from graphbit.errors import ConfigurationError, GraphbitError, RunTimeoutError, WorkflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphbit.cli.screen import Screen
    from graphbit.llm.config import LlmConfig
    from graphbit.result import WorkflowResult
    from graphbit.workflow import Workflow

_ATTEMPT_SECONDS = 300.0  # a model on the user's own machine may take its time
_DEBUG = "graphbit.debug"


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[_DEBUG] = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=_remember_debug, help="Show tracebacks of errors."
    )


class _Command(click.Command):
    """A command that takes --debug behind its name too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())


class _Graphbit(click.Group):
    """Runs a command and turns whatever it ends with into an exit code."""

    command_class = _Command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        options["standalone_mode"] = False
        arguments = sys.argv[1:] if args is None else list(args)
        debug = "--debug" in arguments
        try:
            code = super().main(arguments, prog_name or "graphbit", **options)
        except click.Abort as error:
            # click makes one of Ctrl-C, which is its cause.
            _say("cancelled" if isinstance(error.__cause__, KeyboardInterrupt) else "error: the input ended too early")
            code = 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            if isinstance(error, click.UsageError) and context is not None:
                _say(context.get_usage())
            _say(f"error: {error.format_message()}")
            code = error.exit_code
        except Exception as error:
            code = _failed(error, debug)
        sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception, debug: bool) -> int:
    """Says what went wrong and returns the exit code."""
    from graphbit.cli.loading import LoadError, UsageError

    if debug:
        import traceback

        traceback.print_exception(error)
    said = " ".join(str(error).split())
    if isinstance(error, (GraphbitError, UsageError, LoadError)):
        _say(f"error: {said}")
    else:
        _say(f"error: {type(error).__name__}: {said}" + ("" if debug else " (--debug shows where)"))
    return 2 if isinstance(error, UsageError) else 1


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.group(cls=_Graphbit, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="graphbit", message="%(prog)s %(version)s")
@click.pass_context
def graphbit(context: click.Context) -> None:
    """Workflows of LLM calls, HTTP calls and Python functions, run as a graph by a native core.

    \b
    graphbit demo                            summarise a text in parallel, offline
    graphbit run flow.py -i topic=bees       run the workflow in flow.py
    graphbit validate flow.py                check it without running it
    graphbit doctor                          is everything there?
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


graphbit.params.append(_debug_option())


# ------------------------------------------------------------------------------------------------------------ the model


def _model_options(command: Any) -> Any:
    """--base-url, --model and --api-key-env."""
    for option in (
        click.option("--api-key-env", metavar="VAR", help="Environment variable with the key for --base-url."),
        click.option("--model", metavar="NAME", help="The model to ask."),
        click.option(
            "--base-url", metavar="URL", help="An OpenAI-compatible server, such as http://localhost:8000/v1."
        ),
    ):
        command = option(command)
    return command


def _config(base_url: str | None, model: str | None, api_key_env: str | None) -> LlmConfig | None:
    """The model that was named; else OpenAI's if OPENAI_API_KEY is set; else None."""
    from graphbit.llm.config import LlmConfig

    if base_url is not None:
        if model is None:
            raise click.UsageError("--base-url needs --model")
        key = None
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise click.UsageError(f"--api-key-env: the environment variable {api_key_env} is not set")
        return LlmConfig.openai_compatible(base_url, model, key, timeout=_ATTEMPT_SECONDS)
    if api_key_env is not None:
        raise click.UsageError("--api-key-env needs --base-url")
    if os.environ.get("OPENAI_API_KEY"):
        return LlmConfig.openai(model=model, timeout=_ATTEMPT_SECONDS)
    if model is not None:
        raise click.UsageError("--model needs --base-url, or the environment variable OPENAI_API_KEY")
    return None


# ------------------------------------------------------------------------------------------------------------- commands


@graphbit.command()
@click.argument("file", required=False, metavar="[FILE]")
@_model_options
@click.option("--offline", is_flag=True, help="Ask the built-in fake provider, even where OPENAI_API_KEY is set.")
@click.option("--parts", type=click.IntRange(1, 1000), metavar="N", help="Into how many parts the text is split.")
@click.option(
    "--latency",
    type=click.FloatRange(0, 60_000),
    metavar="MS",
    help="How long the fake provider takes for a call.  [default: 150]",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def demo(
    file: str | None,
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    offline: bool,
    parts: int | None,
    latency: float | None,
    quiet: bool,
) -> int:
    """Summarise a text in parallel and show where the time went.

    FILE is a UTF-8 text, `-` the standard input; without it an essay on honey bees that ships with graphbit. Its parts are
    summarised by agents, all at once; a Python function counts words and finds key terms; a last agent writes the brief.

    With OPENAI_API_KEY set, OpenAI is asked; with --base-url and --model any compatible server; else a fake provider inside this
    process, which needs neither key nor network.
    """
    from graphbit.cli import demo as it
    from graphbit.cli.loading import UsageError, read_text
    from graphbit.cli.screen import standard_error, standard_output

    config = None
    if offline and (base_url is not None or model is not None or api_key_env is not None):
        raise click.UsageError("--offline asks no other model: leave out --base-url, --model and --api-key-env")
    if not offline:
        config = _config(base_url, model, api_key_env)
    if latency is not None and config is not None:
        raise click.UsageError("--latency is the fake provider's; add --offline to ask it")
    path = file if file is not None else str(it.SAMPLE)
    text = read_text(path)
    title = "standard input" if path == "-" else os.path.basename(path)
    if not text.strip():
        raise UsageError(f"{title} has no text in it")
    workflow, result = it.run(
        text,
        title,
        config=config,
        count=parts,
        latency=(150.0 if latency is None else latency) / 1000,
        screen=standard_output(),
        progress=None if quiet else standard_error(),
    )
    return _outcome(workflow, result)


@graphbit.command()
@click.argument("target", metavar="FILE.py[:NAME]")
@click.option(
    "-i",
    "--input",
    "pairs",
    multiple=True,
    metavar="NAME=TEXT",
    help="An input; NAME=@FILE reads a file, NAME=@- the standard input, NAME:=JSON any value. As often as needed.",
)
@_model_options
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="Seconds for the whole run.")
@click.option("--continue", "keep_going", is_flag=True, help="After a failure finish what does not depend on it.")
@click.option("--json", "wants_json", is_flag=True, help="Print all outputs, states and errors as one JSON object.")
@click.option("--timeline", is_flag=True, help="Show when each node ran and where the time went.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def run(
    target: str,
    pairs: tuple[str, ...],
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    timeout: float | None,
    keep_going: bool,
    wants_json: bool,
    timeline: bool,
    quiet: bool,
) -> int:
    """Run a workflow from a Python file.

    FILE.py makes a Workflow at its top level; NAME says which, where there are several: a variable, the workflow's own name, or a
    function that makes one. What stands under `if __name__ == "__main__"` does not run.

    Prints the outputs of the nodes that nobody follows. Agents without a model of their own ask the one that --base-url and --model
    name, else OpenAI with OPENAI_API_KEY.

    \b
    graphbit run flow.py -i topic=bees
    graphbit run flow.py:brief -i text=@notes.txt -i limits:='{"words": 200}' --timeline
    """
    from graphbit.cli.loading import check_inputs, load_workflow, parse_inputs
    from graphbit.cli.screen import standard_error
    from graphbit.cli.watch import Watch
    from graphbit.executor import Executor

    inputs = parse_inputs(pairs)
    workflow = load_workflow(target)
    workflow.validate()
    check_inputs(workflow, inputs)
    config = None
    if base_url is not None or model is not None or api_key_env is not None or _needs_model(workflow):
        config = _config(base_url, model, api_key_env)
    if config is None and _needs_model(workflow):
        raise ConfigurationError(
            f"workflow {workflow.name()!r} asks a model: set OPENAI_API_KEY, or pass --base-url and --model"
        )
    screen = standard_error()
    started = Executor(config, timeout_seconds=timeout, on_error="continue" if keep_going else "fail_fast").start(
        workflow, inputs
    )
    late: RunTimeoutError | None = None
    try:
        if quiet:
            result = started.wait()
        else:
            with Watch(started, screen):
                result = started.wait()
    except RunTimeoutError as error:
        late, result = error, error.result
    _print_outputs(workflow, result, wants_json)
    if timeline:
        _print_timeline(workflow, result, screen)
    if late is not None:
        _say(f"error: workflow {workflow.name()!r} was not over within {timeout:g} s")
    return max(_outcome(workflow, result, told=not quiet), int(late is not None))


@graphbit.command()
@click.argument("target", metavar="FILE.py[:NAME]")
def validate(target: str) -> int:
    """Check a workflow without running it, and show its nodes, edges and inputs."""
    from graphbit._lower import lower
    from graphbit.cli.loading import load_workflow
    from graphbit.cli.screen import counted, standard_output
    from graphbit.llm.config import LlmConfig

    workflow = load_workflow(target)
    if not workflow.node_count():
        raise WorkflowError(f"workflow {workflow.name()!r} has no nodes")
    workflow.validate()
    # What a run would be made of: some mistakes come to light there only. Any model will do, none is asked.
    lower(workflow.structure(), LlmConfig.openai_compatible("http://localhost/v1", "any"), {})
    screen = standard_output()
    before: dict[str, list[str]] = {node.name(): [] for node in workflow.nodes}
    for source, to in workflow.edges:
        before[to].append(source)
    screen.line((f"workflow {workflow.name()!r} is sound", "green"))
    screen.heading(counted(len(workflow.nodes), "node"))
    width = max(len(node.name()) for node in workflow.nodes)
    for node in workflow.nodes:
        sources = before[node.name()]
        screen.line(
            f"  {node.name():{width}}  ", (f"{node.kind:9}", "cyan"), f"  after {', '.join(sources)}" if sources else ""
        )
    screen.heading(counted(len(workflow.edges), "edge"))
    for source, to in workflow.edges:
        screen.line(f"  {source} -> {to}")
    screen.heading(counted(len(workflow.inputs), "input"))
    for name in workflow.inputs:
        screen.line(f"  {name}")
    return 0


@graphbit.command()
def doctor() -> int:
    """Is everything there? Exits with 1 if something is missing, and says what to do."""
    from graphbit.cli import doctor as it
    from graphbit.cli.screen import standard_output

    return 0 if it.run(standard_output()) else 1


@graphbit.command()
def version() -> None:
    """Print the version."""
    click.echo(f"graphbit {__version__}")


# -------------------------------------------------------------------------------------------------------- what run says


def _needs_model(workflow: Workflow) -> bool:
    return any(node.kind == "agent" and getattr(node, "llm_config", None) is None for node in workflow.nodes)


def _print_outputs(workflow: Workflow, result: WorkflowResult, wants_json: bool) -> None:
    """The outputs of the last nodes, a single one bare, so that it can be piped on; or everything as JSON."""
    from graphbit.cli import report

    if wants_json:
        click.echo(report.as_json(workflow, result))
        return
    outputs = result.outputs
    last = report.sinks(workflow)
    shown = [(name, outputs[name]) for name in last if outputs.get(name) is not None]
    for i, (name, value) in enumerate(shown):
        if len(last) > 1:
            click.echo(f"{'' if i == 0 else chr(10)}== {name} ==")
        click.echo(report.as_text(value))


def _print_timeline(workflow: Workflow, result: WorkflowResult, screen: Screen) -> None:
    from graphbit.cli import report

    screen.heading("Nodes, from start to end")
    screen.lines(report.timeline(workflow, result, screen))
    if any(node.kind == "agent" for node in workflow.nodes):
        screen.heading("Calls")
        screen.lines(report.call_lines(workflow, result))
    screen.heading("Where the time went")
    screen.lines(report.time_lines(workflow, result))
    screen.line()


def _outcome(workflow: Workflow, result: WorkflowResult, *, told: bool = False) -> int:
    """The exit code; errors are told, and with `told` how the run ended."""
    from graphbit.cli import report

    errors = result.errors
    if click.get_current_context().meta.get(_DEBUG):
        import traceback

        for error in errors.values():
            traceback.print_exception(error)
    for name, error in errors.items():
        _say(f"error: {report.error_text(name, error)}")
    if told:
        _say(f"{workflow.name()}: {report.summary(result)}")
    return 0 if result.is_success() else 1
