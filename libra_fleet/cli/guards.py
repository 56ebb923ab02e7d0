"""`libra guards`: the guards that can be run by name, their status and prompts, and a check of one's own checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from rich.text import Text

from infra.errors import GuardError, UsageError
from infra.guard_catalogue import GUARDS
from infra.settings import load_settings
from libra_fleet.cli.options import GuardChoice, dtype_option, guard_named, json_option, require_one_checkpoint
from libra_fleet.cli.show import out, print_json, say
from schemas.guards import Family, GuardCard, is_generator
from worker.guards.show import describe

if TYPE_CHECKING:
    from worker.checkup.asking import Sample
    from worker.checkup.report import Report
    from worker.device.spec import DTypeName

_BATCH_TOKENS: Final = 4_096
"""Enough for a few texts at a time; the fastest budget is not looked for."""


@click.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the guards that can be run by name, each with an honest status."""
    if as_json:
        print_json([_facts(card) for card in GUARDS.values()])
        return
    width = max(map(len, GUARDS))
    for card in GUARDS.values():  # two lines each, so that 80 columns hold a name and its status, the rest below
        modes = ", ".join(mode.value for mode in card.modes) or "no mode"
        facts = (card.hub_id or "inside the package", modes, f"{card.context_tokens:,} tokens", card.licence)
        out.print(Text(f"{card.name:<{width}}  {card.status.value}"))
        out.print(Text(f"  {' · '.join(facts)}", style="dim"), soft_wrap=True)


@click.command()
@click.argument("guard", metavar="NAME[=CHECKPOINT]", callback=lambda _, __, value: guard_named(value))
@json_option
def show(*, guard: GuardChoice, as_json: bool) -> None:
    """Print a guard's card and its prompt.

    The prompt is rendered by the checkpoint where it is at hand (bundled, given, or in the hub's cache), and is the
    family's format with placeholders where it is not.
    """
    card = GUARDS.get(guard.name)
    prompt = describe(guard.name, guard.checkpoint)
    if as_json:
        print_json({**(_facts(card) if card else {"name": guard.name}), "prompt": prompt})
        return
    for name, value in (_facts(card) if card else {"name": guard.name}).items():
        if value not in ("", (), [], None):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            out.print(Text(f"{name.replace('_', ' '):<20}", style="dim").append(shown, style="not dim"))
    out.print()
    click.echo(prompt)


@click.command()
@click.argument("guard", metavar="NAME[=CHECKPOINT]")
@click.option("--checkpoint", help="Folder, hub id or BASE+ADAPTER to check instead of the guard's own.")
@click.option("--devices", default="all", show_default=True, help="all, cpu, or CUDA indexes; the first is taken.")
@click.option(
    "--devices-per-worker", type=click.IntRange(min=1), default=1, help="Devices that the model is spread over."
)
@dtype_option
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings along.")
@json_option
@click.pass_context
def check(
    context: click.Context,
    *,
    guard: str,
    checkpoint: str | None,
    devices: str,
    devices_per_worker: int,
    dtype: DTypeName,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Load a checkpoint and see if it answers as its guard's family should.

    It is loaded as a worker loads it and asked about built-in plain texts. Shows rendered samples, the ids around the
    label, the labels' probability and whether both modes agree. Exit 0 if it fits, 5 if not.
    """
    from worker.checkup.report import check as check_checkpoint  # noqa: PLC0415 - keeps `libra guards` quick
    from worker.device.inventory import choose_devices  # noqa: PLC0415
    from worker.device.spec import DeviceSpec  # noqa: PLC0415

    require_one_checkpoint(guard, checkpoint)
    choice = guard_named(f"{guard}={checkpoint}" if checkpoint else guard)
    card = GUARDS.get(choice.name)
    if is_generator(choice.name) or (card and card.family is Family.FAKE):
        raise UsageError(f"{choice.name} has no labels to check: it is no guard with a checkpoint")
    settings = load_settings()
    device = choose_devices(devices, per_worker=devices_per_worker, visible=settings.cuda_visible_devices)[0]
    log = settings.state_dir / "logs" / f"check-{choice.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    spec = DeviceSpec(
        guard=choice.name,
        location=choice.checkpoint,
        revision=card.revision if card and not choice.checkpoint else None,
        device="cpu" if device == "cpu" else "cuda:0",
        max_batch_tokens=settings.max_batch_tokens or _BATCH_TOKENS,
        batch_deadline_s=settings.batch_deadline_s,
        socket_path=log,  # the check gives its device paths of its own
        heartbeat_path=log,
        devices_per_worker=devices_per_worker,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    report = check_checkpoint(spec, visible="" if device == "cpu" else device, log=log, say=say)
    if as_json:
        print_json(report.facts())
    else:
        _print_check(report)
    context.exit(0 if report.fits else GuardError.exit_code)


def _print_check(report: Report) -> None:
    """The samples first and the verdict last, where it stays on the screen."""
    for one in report.samples:
        _print_sample(report, one)
    status = f"prompt: {report.card.status.value}" if report.card else "not in the catalogue"
    facts = (str(report.folder), report.info.dtype, report.info.device, f"revision {report.info.revision}", status)
    out.print(Text(" · ".join(facts), style="dim"), soft_wrap=True)
    for count in report.tallies:
        mass = f", label mass {count.label_mass:.4f} (least {count.least_mass:.4f})" if count.label_mass else ""
        right = f"{count.safe_as_safe} of {count.safe} safe and {count.unsafe_as_unsafe} of {count.unsafe} unsafe right"
        out.print(
            f"{count.kind} in mode {count.mode}: {count.read} of {count.texts} read, {right}{mass}", soft_wrap=True
        )
    for note in report.notes:
        out.print(Text("note: ", style="dim").append(note), soft_wrap=True)
    for finding in report.findings:
        out.print(
            Text(f"✗ {finding.name}: ", style="bold red").append(finding.what, style="not bold default"), soft_wrap=True
        )
        out.print(Text(f"    do:  {finding.do}"), soft_wrap=True)
    out.print(Text(report.line, style="bold green" if report.fits else "bold red"), soft_wrap=True)


def _print_sample(report: Report, one: Sample) -> None:
    facts = report.sample_facts(one)
    more = f", the first of {len(one.prompts)} prompts" if len(one.prompts) > 1 else ""
    out.print(Text(f"── {one.kind}, {one.text.label} ({one.text.language}){more}", style="bold"))
    click.echo(facts["prompts"][0])
    _print_pieces("ids before the label", facts["before_label"])
    for label in facts["labels"]:
        _print_pieces("label", label)
    if facts["written"] is not None:
        _print_pieces("the model writes", facts["written"])
    for row in report.verdicts_of(one):
        verdict = row.verdict
        numbers = {"p_unsafe": verdict.p_unsafe, "label mass": verdict.label_mass}
        said = [f"{name} {value:.4f}" for name, value in numbers.items() if value is not None]
        label = verdict.label.value if verdict.label else f"{verdict.outcome.value} ({verdict.reason})"
        out.print(Text(f"{f'mode {row.mode}':<22}", style="dim").append(" · ".join([label, *said]), style="not dim"))
    out.print()


def _print_pieces(head: str, pieces: list[tuple[int, str]]) -> None:
    shown = "  ".join(f"{token} {piece!r}" for token, piece in pieces) or "nothing"
    out.print(Text(f"{head:<22}", style="dim").append(shown, style="not dim"), soft_wrap=True)


def _facts(card: GuardCard) -> dict[str, object]:
    return {**card.model_dump(mode="json"), "revision_note": card.revision_note}
