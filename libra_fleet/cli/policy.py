"""`libra policy`: try a policy on stored verdicts, put it into force, decide again. No GPU takes part."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import click
from rich.table import Table

from infra.errors import UsageError
from infra.ledger import decisions
from infra.ledger.decisions import StoredPolicy
from infra.ledger.runs import run_status
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option, timestamp
from libra_fleet.cli.show import out, print_json, print_listing, say
from producer.policies import read_policy
from schemas.policy import Action, Decision, Policy, decide

_EXAMPLES: Final = 3


@dataclass
class Diff:
    """Decisions as they would be, compared with those that hold."""

    actions: Counter[Action] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    by_category: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, item_id: str, before: Action | None, decision: Decision, *, categories: tuple[str, ...]) -> None:
        """Count one item."""
        after = decision.action
        self.actions[after] += 1
        if before is after:
            return
        if after is Action.PASS:
            move = "newly passed" if before is None else "newly released"
        else:
            move = "newly blocked" if after is Action.BLOCK else "newly to review"
        self.moves[move] += 1
        self.by_category[move, decision.category or (categories[0] if categories else "no category")] += 1
        if len(self.examples[move]) < _EXAMPLES:
            self.examples[move].append(item_id)

    def facts(self) -> dict[str, object]:
        """The diff as JSON has it."""
        return {
            "decided": self.actions.total(),
            "actions": {action.value: self.actions[action] for action in Action},
            "changes": {
                move: {
                    "count": count,
                    "categories": {name: n for (of, name), n in self.by_category.most_common() if of == move},
                    "examples": self.examples[move],
                }
                for move, count in self.moves.most_common()
            },
        }

    def show(self) -> None:
        """The diff as a table."""
        out.print(" · ".join(f"{self.actions[action]:,} {action.value}" for action in Action))
        table = Table("change", "items", "by category", "such as", box=None, pad_edge=False)
        for move, count in self.moves.most_common():
            by = [f"{name} {n:,}" for (of, name), n in self.by_category.most_common() if of == move]
            table.add_row(move, f"{count:,}", ", ".join(by), ", ".join(self.examples[move]))
        out.print(table if self.moves else "no item's action changes")


@click.command()
@click.argument("file")
@click.option("--verdicts", "run", metavar="RUN", help="Try it on the verdicts of this run.")
@click.option("--sample", type=click.IntRange(min=1), help="Try it on so many stored verdicts, at random.")
@click.option("--seed", type=int, default=0, help="With --sample: another number, another sample.")
@click.option("--surface", help="As if everything came from this surface.")
@click.option("--show-text", is_flag=True, help="Also list every item with its text and its action.")
@json_option
def test(
    *, file: str, run: str | None, sample: int | None, seed: int, surface: str | None, show_text: bool, as_json: bool
) -> None:
    """Check a policy's file, and show what it would do to stored verdicts.

    Nothing is changed. Changes are counted against the decisions that hold now, where there are any.
    """
    tried = _checked(file)
    if run and sample:
        raise UsageError("--verdicts and --sample exclude each other")
    if not (run or sample):
        say("the file is valid; --verdicts RUN or --sample N shows what it would do")
        if as_json:
            print_json(tried.model_dump(mode="json"))
        return
    diff = Diff()
    with connected() as found:
        run_id = run_status(found.engine, run).id if run else None
        stored = decisions.verdicts_to_try(found.engine, run_id=run_id, sample=sample or 0, seed=seed, texts=show_text)
        for item in stored:
            verdict = item.judged.verdict
            decision = decide(tried, verdict, surface=item.surface if surface is None else surface)
            diff.add(item.item_id, item.action, decision, categories=verdict.categories)
            if show_text:
                say(f"{item.item_id}: {decision.action} ({decision.reason})")
                say("  " + " / ".join(filter(None, (item.question, item.response))))
    _print(diff, as_json=as_json)


def _checked(file: str) -> Policy:
    found = read_policy(file)
    foreign = found.foreign_categories()
    if foreign:
        say(f"in none of our taxonomies, so read as a guard's own codes: {', '.join(foreign)}")
    return found


def _print(diff: Diff, *, as_json: bool, **facts: object) -> None:
    if as_json:
        print_json({**facts, **diff.facts()})
    else:
        diff.show()


@click.command()
@click.argument("file")
@json_option
def put(*, file: str, as_json: bool) -> None:
    """Store a policy and put it into force.

    It decides items that are judged from now on. A stored version never changes: a changed file needs another
    `version`. To go back, put the older file again.
    """
    new = _checked(file)
    with connected() as found:
        fresh = decisions.put_policy(found.engine, new)
    what = "stored and in force" if fresh else "was stored already; it is in force"
    say(f"{new.policy} version {new.version} {what}. Decide stored verdicts again: libra policy apply {new.policy}")
    if as_json:
        print_json({"policy": new.policy, "version": new.version, "stored": fresh})


@click.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """List all versions of all policies; the one in force is marked."""
    with connected() as found:
        stored = decisions.stored_policies(found.engine)
    if as_json:
        print_json([_facts(one) for one in stored])
        return
    if not stored:
        out.print("no policies yet: `libra policy put default` puts the shipped one")
        return
    listed = []
    for one in stored:
        rules = one.policy
        row = (rules.policy, str(rules.version), "yes" if one.active else "", ", ".join(one.tenants))
        listed.append((*row, f"{one.created_at:%Y-%m-%d %H:%M}", rules.description))
    print_listing(("policy", "version", "in force", "default of", "since (UTC)", "description"), listed)


def _facts(one: StoredPolicy) -> dict[str, object]:
    return {
        "active": one.active,
        "created_at": one.created_at.isoformat(),
        "default_of": list(one.tenants),
        **one.policy.model_dump(mode="json", exclude_none=True),
    }


@click.command()
@click.argument("name", metavar="NAME[@VERSION]")
def show(*, name: str) -> None:
    """Print a stored version as JSON.

    Without a version, the one in force.
    """
    bare, at, version = name.partition("@")
    if at and not version.isdecimal():
        raise UsageError(f"{name!r}: expected NAME or NAME@VERSION, such as default@2")
    with connected() as found:
        print_json(_facts(decisions.stored_policy(found.engine, bare, int(version) if at else None)))


@click.command()
@click.argument("tenant")
@click.argument("name", required=False)
@click.option("--none", "nothing", is_flag=True, help="No policy: verdicts are sent without an action.")
def default(*, tenant: str, name: str | None, nothing: bool) -> None:
    """Make a policy the default of a tenant's items.

    It applies to items that name no other.
    """
    if bool(name) == nothing:
        raise UsageError("give a policy's name, or --none")
    with connected() as found:
        decisions.set_tenant_policy(found.engine, tenant, name)
    say(f"{tenant}: {name or 'no policy'} from now on")


@click.command()
@click.argument("name")
@click.option(
    "--since", metavar="WHEN", callback=timestamp, required=True, help="Verdicts since then: 7d, 12h, a date."
)
@click.option("--tenant", help="Only this tenant's items.")
@click.option("--yes", is_flag=True, help="Do it.")
@json_option
def apply(*, name: str, since: datetime, tenant: str | None, yes: bool, as_json: bool) -> None:
    """Decide stored verdicts again by the policy version in force.

    Without --yes, only the changes are shown. Items that a human has decided stay as they are. Every changed action is
    sent to the platform as an item.redecided event.
    """
    with connected() as found:
        rules = decisions.stored_policy(found.engine, name).policy
        planned = Diff()
        for change in decisions.changes(found.engine, rules, since, tenant=tenant):
            _count(planned, change)
        if not (yes and planned.actions):
            _print(planned, as_json=as_json, policy=rules.policy, version=rules.version, applied=False)
            if planned.actions:
                say("nothing was changed; --yes decides these again")
            return
        if not as_json:
            planned.show()
        done = Diff()
        found_changes = decisions.changes(found.engine, rules, since, tenant=tenant)
        for change in decisions.apply_changes(found.engine, found_changes):
            _count(done, change)
    if as_json:
        _print(done, as_json=True, policy=rules.policy, version=rules.version, applied=True)
    say(f"{done.actions.total():,} decisions renewed by {rules.policy} version {rules.version}")


def _count(diff: Diff, change: decisions.Change) -> None:
    categories = change.judged.verdict.categories
    diff.add(change.subject.item_id, change.before, change.ruling.decision, categories=categories)
