"""The whole `libra` command on one page: groups, commands, the module of each, and the names it had before.

Nothing here imports a command. `libra --help` and the shell's completion read this table; only the command that is
called is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from infra.errors import UsageError


class Entry(NamedTuple):
    """A command that is not loaded yet: module and object below `libra_fleet.cli`, and its help in a sentence."""

    place: str
    help: str

    def load(self, name: str) -> click.Command:
        """Import the command, or what takes its place where an extra that it needs is not installed."""
        module, _, attribute = self.place.partition(":")
        try:
            command: click.Command = getattr(import_module(f"libra_fleet.cli.{module}"), attribute)
        except ImportError as error:
            extra = "is an extra missing, such as pip install 'libra-fleet[worker]'?"
            problem = f"{name} is not available here: {error}; {extra}"

            @click.command(name=name, context_settings={"ignore_unknown_options": True})
            @click.argument("_", nargs=-1)
            def unavailable(**_: object) -> None:
                raise UsageError(problem)

            return unavailable
        return command


class LazyGroup(click.Group):
    """A group whose commands are loaded when they are called, and listed with sentences that are wrapped, not cut.

    `old` are names of earlier versions: they work and are not listed. `default` is called where no command is named.
    """

    def __init__(
        self,
        name: str,
        table: Mapping[str, Entry | click.Command],
        *,
        old: Mapping[str, Entry | click.Command] | None = None,
        default: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(name, no_args_is_help=default is None, **settings)
        self._table = table
        self._old = old or {}
        self._default = default

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name, old ones included."""
        found = self._table.get(cmd_name) or self._old.get(cmd_name)
        return found.load(cmd_name) if isinstance(found, Entry) else found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest those of a similar name."""
        known = [*self._table, *self._old]
        close = difflib.get_close_matches(args[0], known, n=3)
        if args[0] not in known and close and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {', '.join(close)}?")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of options that no command precedes."""
        if self._default and (not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)):
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _sentence(found)) for name, found in self._table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name or one of the group's options, without loading a command."""
        names = [name for name in self._table if name.startswith(incomplete)]
        found = [CompletionItem(name, help=_sentence(self._table[name])) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _sentence(found: Entry | click.Command) -> str:
    return found.help if isinstance(found, Entry) else (found.help or "").partition("\n\n")[0].replace("\n", " ")


DEAD: Final = LazyGroup(
    "dead",
    {
        "list": Entry("rejudge:list_dead", "List the dead items of a run without their texts."),
        "show": Entry("rejudge:show_dead", "Print one dead item with its text as JSON."),
        "retry": Entry("rejudge:retry_dead", "Submit a run's dead items again, as a run of their own."),
        "settle": Entry("rejudge:settle_kept", "Have verdicts settled that no collector could settle."),
    },
    help="List, show or retry the items of a run that died, and settle kept verdicts.",
)

_RUN_TABLE: Final[dict[str, Entry | click.Command]] = {
    "start": Entry("run:start", "Submit a data set, wait for the run to complete and print its table."),
    "submit": Entry("run:submit", "Submit a data set and return; a fleet elsewhere judges it."),
    "watch": Entry("run:watch", "Follow a run until it has ended, then print its table."),
    "resume": Entry("run:resume", "Go on with a run whose submission was interrupted."),
    "cancel": Entry("run:cancel", "End a run now; its pending items settle as dead."),
    "list": Entry("run:list_", "List the newest runs."),
    "show": Entry("run:show", "Show the state of a run."),
    "report": Entry("run:report", "Print the report of a run that has ended, and write it as a page."),
    "compare": Entry("compare:compare", "Compare runs that have ended."),
    "parity": Entry("compare:parity", "Judge a data set in two modes and show where they differ."),
    "choose-thresholds": Entry("run:choose_thresholds", "Choose a cascade stage's thresholds from a labelled run."),
    "verify": Entry("run:verify", "Prove that nothing in a run was lost, doubled or altered."),
    "export": Entry("exchange:export", "Write the judgements of a run, one row each."),
    "import": Entry("exchange:import_", "Import results with a `critic` field as a run."),
    "cost": Entry("cost:cost", "Show device time, tokens and money, or the devices that a rate needs."),
    "dead": DEAD,
    "rejudge": Entry("rejudge:rejudge", "Judge stored items again with another guard, as child runs."),
}

RUN: Final = LazyGroup(
    "run",
    _RUN_TABLE,
    help="""Judge data sets: start, follow, report and compare bulk runs.

    SOURCE is a JSON, JSONL or Parquet file, a folder of these, - for standard input, a hub id such as
    caskcsg/Libra-Test, or `demo`. RUN is a run's name or id.

    \b
    Exit codes: 0 done, 1 unforeseen, 2 usage, 3 data, 4 servers, 5 guard,
    6 device, 7 a run that ended other than asked, 130 interrupted.
    """,
)

_FLEET_TABLE: Final = {
    "up": Entry("up:up", "Run a whole fleet on this machine and show it until Ctrl-C."),
    "worker": Entry("fleet:worker", "Judge items with one guard on this machine's devices until SIGTERM."),
    "collector": Entry("fleet:collector", "Settle verdicts into the ledger and complete runs until SIGTERM."),
    "gateway": Entry("fleet:gateway", "Serve the HTTP API and the console until SIGTERM."),
    "webhooks": Entry("fleet:webhooks", "Send webhook messages from the outbox until SIGTERM."),
    "exporter": Entry("fleet:exporter", "Serve the fleet's metrics to Prometheus until SIGTERM."),
    "status": Entry("status:status", "Show queues, workers, collectors and open runs, and say what is wrong."),
    "doctor": Entry("status:doctor", "Look for problems of machine, servers, settings and fleet."),
    "health": Entry("fleet:health", "Exit 0 if the configured Redis answers, else 4."),
    "migrate": Entry("fleet:migrate", "Bring the configured Postgres to the ledger's present schema."),
    "drill": Entry("drill:drill", "Break a fleet of the fake guard on purpose, and audit what it kept."),
}


@click.pass_context
def _trace_as_role(context: click.Context) -> None:
    from infra import tracing  # noqa: PLC0415 - help loads nothing but this table
    from infra.settings import load_settings  # noqa: PLC0415

    tracing.start(load_settings().otlp_endpoint, f"libra-{context.invoked_subcommand}")


FLEET: Final = LazyGroup(
    "fleet",
    _FLEET_TABLE,
    callback=_trace_as_role,
    help="Start, watch, examine and maintain the processes that judge and settle items.",
)

_GUARDS: Final = LazyGroup(
    "guards",
    {
        "list": Entry("guards:list_", "List the guards that can be run by name, each with an honest status."),
        "show": Entry("guards:show", "Print a guard's card and its prompt."),
        "check": Entry("guards:check", "Load a checkpoint and see if it answers as its guard's family should."),
    },
    default="list",
    help="""List and describe the guards that can be run by name.

    `libra run start` also takes several in a row: --guard 'cascade:libra-tiny>libra-guard-qwen2.5-7b-instruct'.
    """,
)

POLICY: Final = LazyGroup(
    "policy",
    {
        "test": Entry("policy:test", "Check a policy's file, and show what it would do to stored verdicts."),
        "put": Entry("policy:put", "Store a policy and put it into force."),
        "list": Entry("policy:list_", "List all versions of all policies; the one in force is marked."),
        "show": Entry("policy:show", "Print a stored version as JSON."),
        "default": Entry("policy:default", "Make a policy the default of a tenant's items."),
        "apply": Entry("policy:apply", "Decide stored verdicts again by the policy version in force."),
    },
    help="""Decide what a verdict means for the platform: pass, review or block.

    FILE is a policy in YAML, or the name of a shipped one: default, community, model-answers (docs/policies.md).
    """,
)

KEYS: Final = LazyGroup(
    "keys",
    {
        "create": Entry("keys:create", "Make an API key and print it, this once."),
        "list": Entry("keys:list_", "List API keys, revoked ones as well."),
        "revoke": Entry("keys:revoke", "End an API key."),
        "secret": Entry("keys:secret", "Print the signing secret of an API key, for the clouds' wires."),
    },
    help="Make, list and revoke API keys of the gateway.",
)

ENDPOINTS: Final = LazyGroup(
    "endpoints",
    {
        "add": Entry("webhooks:add", "Send a tenant's events to a URL from now on."),
        "list": Entry("webhooks:list_endpoints", "List endpoints without their secrets."),
        "remove": Entry("webhooks:remove", "Remove an endpoint; messages that still wait for it fail."),
        "enable": Entry("webhooks:enable", "Send to a disabled endpoint again."),
        "rotate": Entry("webhooks:rotate", "Give an endpoint a new signing secret and print it."),
    },
    help="Manage the addresses that receive all of a tenant's events.",
)

WEBHOOKS: Final = LazyGroup(
    "webhooks",
    {
        "endpoints": ENDPOINTS,
        "list": Entry("webhooks:list_", "List the newest messages, their destinations and delivery states."),
        "resend": Entry("webhooks:resend", "Send messages again under the same ids."),
        "secret": Entry("webhooks:secret", "Print the secret that signs messages to a tenant's callback addresses."),
    },
    old={
        "send": Entry("fleet:webhooks", "Send webhook messages from the outbox until SIGTERM."),
        "replay": Entry("webhooks:resend", "Send messages again under the same ids."),
    },
    help="Manage webhooks: endpoints, messages and signing secrets (docs/webhooks.md).",
)

CURATE: Final = LazyGroup(
    "curate",
    {
        "combine": Entry("data:combine", "Draw combinations of elements, sub-categories in turn."),
        "queries": Entry("data:queries", "Write harmful queries, and as many harmless ones with the same words."),
        "augment": Entry("data:augment", "Reword and disguise queries, then leave out near-duplicates."),
        "responses": Entry("data:responses", "Answer every query, by each generator or in the grammar's manners."),
        "annotate": Entry("data:annotate", "Let two guards judge every answer, and keep the rows that both agree on."),
        "real": Entry("data:real", "Read a labelled data set as rows with their provenance and ids of their own."),
        "select": Entry("data:select", "Take the hard examples of a run."),
        "status": Entry("data:status", "Show each stage's rows, and how many by label, source, licence and reason."),
        "elements": Entry("data:elements", "Show the parts of queries: phrases, task types, places and events."),
    },
    help="""Make training rows in stages, each a file of JSON lines.

    The first five stages make rows from combinations; `real` and `select` take rows that exist. DIR holds one file of
    JSON lines per stage. The same command resumes a stage that was stopped.""",
)

_DATA_TABLE: Final[dict[str, Entry | click.Command]] = {
    "curate": CURATE,
    "purge": Entry("data:purge", "Scrub the texts of runs and live items that settled long enough ago."),
}
DATA: Final = LazyGroup(
    "data",
    _DATA_TABLE,
    help="Make training data, and scrub stored texts that were kept long enough.",
)

BENCH: Final = LazyGroup(
    "bench",
    {
        "run": _RUN_TABLE["start"],
        "status": _RUN_TABLE["show"],
        **{name: _RUN_TABLE[name] for name in ("submit", "resume", "watch", "list", "cancel", "report")},
        **{name: _RUN_TABLE[name] for name in ("parity", "compare")},
    },
    help="Do what `libra run` does, under the names of earlier versions.",
)

CASCADE: Final = LazyGroup(
    "cascade",
    {"fit": _RUN_TABLE["choose-thresholds"], "report": Entry("run:cascade_report", "Print the report of a cascade.")},
    help="Do what `libra run choose-thresholds` and `libra run report` do, under the names of earlier versions.",
)

COMMANDS: Final[Mapping[str, Entry | click.Command]] = {
    "eval": Entry("evaluate:evaluate", "Measure models on a data set."),
    "run": RUN,
    "fleet": FLEET,
    "judge": Entry("judge:judge", "Judge one text over the live lane."),
    "submit": Entry("judge:submit", "Submit JSON lines to a gateway, and print ids or verdicts."),
    "guards": _GUARDS,
    "policy": POLICY,
    "keys": KEYS,
    "webhooks": WEBHOOKS,
    "data": DATA,
    "train": Entry("train:train", "Train a guard by a recipe, and write its model card."),
    "infer": Entry("reference:infer", "Judge a data set into files as the benchmark's inference.py does."),
    "metrics": Entry("reference:metrics", "Print metrics of files as the benchmark's evaluate_metrics.py does."),
    "completion": Entry("main:completion", "Print the code that completes `libra` commands in a shell."),
}
"""The commands that `libra --help` lists."""

OLD_COMMANDS: Final[Mapping[str, Entry | click.Command]] = {
    "bench": BENCH,
    "capacity": _RUN_TABLE["cost"],
    "cascade": CASCADE,
    "metrics-exporter": _FLEET_TABLE["exporter"],
    "remoderate": _RUN_TABLE["rejudge"],
    **{name: _RUN_TABLE[name] for name in ("cost", "dead", "export", "import", "verify")},
    **_DATA_TABLE,
    **{name: found for name, found in _FLEET_TABLE.items() if name not in ("webhooks", "exporter")},
}
"""Names of earlier versions: they work, and no help lists them."""
