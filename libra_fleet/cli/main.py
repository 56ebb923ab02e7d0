"""The root of the `libra` command: settings and logs for all commands, and an exit code for every error."""

from __future__ import annotations

import io
import os
import sys
from typing import Final

import click
from click.shell_completion import get_completion_class

from infra.errors import (
    EndpointNotFoundError,
    KeyNotFoundError,
    LedgerOutdatedError,
    LibraError,
    PolicyNotFoundError,
    RunNotFoundError,
    UsageError,
)
from libra_fleet.cli.commands import COMMANDS, OLD_COMMANDS, LazyGroup

_ADVICE: Final = {
    RunNotFoundError: "; `libra run list` shows those there are",
    KeyNotFoundError: "; `libra keys list` shows those there are",
    PolicyNotFoundError: "; `libra policy list` shows those there are",
    EndpointNotFoundError: "; `libra webhooks endpoints list` shows those there are",
    LedgerOutdatedError: ": run `libra fleet migrate` once",
}
"""The next thing to type after an error of the ledger, which knows no commands."""

_INTERRUPTED: Final = 130


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    old=OLD_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="libra-fleet", prog_name="libra")
@click.pass_context
def libra(context: click.Context) -> None:
    """Asynchronous content moderation on your own GPUs."""
    from infra import tracing  # noqa: PLC0415 - `libra --help` loads nothing but the table of commands
    from infra.log import configure_logging  # noqa: PLC0415
    from infra.process import die_with_parent  # noqa: PLC0415
    from infra.settings import load_settings, unknown_settings  # noqa: PLC0415

    settings = load_settings()
    if settings.parent_pid is None:  # whose parent has said it already
        for name, meant in unknown_settings().items():
            if meant:
                click.echo(f"libra: nothing reads {name}; did you mean {meant}?", err=True)
    configure_logging(settings.log_level, settings.log_format)
    if context.invoked_subcommand != "fleet":  # whose processes trace under the names of their roles
        tracing.start(settings.otlp_endpoint, f"libra-{context.invoked_subcommand}")
    if settings.parent_pid is not None:
        die_with_parent(parent_pid=settings.parent_pid)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print the code that completes `libra` commands in a shell.

    For bash put this line into ~/.bashrc: eval "$(libra completion bash)"
    """
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(found(libra, {}, "libra", "_LIBRA_COMPLETE").source())


def _forgive_encodings() -> None:
    """Print a replacement for what the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _print_error(message: str) -> None:
    """Print an error, red where the terminal and NO_COLOR allow it."""
    from rich.console import Console  # noqa: PLC0415 - `libra --help` loads nothing but the table of commands

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(message, style="red", markup=False, emoji=False)


def main() -> None:
    """Run the command line; every error of ours becomes one line and its exit code."""
    _forgive_encodings()
    try:
        for argument in sys.argv:  # one that is not valid text could be neither stored nor shown
            if argument.encode(errors="replace").decode() != argument:
                raise UsageError(f"not valid UTF-8: {argument.encode(errors='replace').decode()}")
        code = libra.main(prog_name="libra", standalone_mode=False)
        sys.stdout.flush()
        if isinstance(code, int) and code:  # what a command gave to context.exit
            sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough; Python must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_INTERRUPTED)
    except LibraError as error:
        _print_error(f"libra: {error}{_ADVICE.get(type(error), '')}")
        sys.exit(error.exit_code)
