"""Everything that scripts read of us, recorded once from one small fleet, equals what is recorded in tests/golden.

The recordings are compatibility contracts: the shapes that scripts depend on, of every command's `--json`, of the
exporter's page and of the gateway's answers. They were recorded from commit a3683d2, before the rooms were rebuilt.
They prove that shapes did not change, not that values are right: other tests do that.

What differs from one time to the next (ids, timestamps, durations, places) is replaced by a token, by its key or by its
form; names, types and every other value are compared as they are. An id's token has a number by its first appearance
in the recording, so that two ids that were the same stay the same. `LIBRA_WRITE_GOLDENS=1` records again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import httpx2
import pytest
import redis
from click.testing import CliRunner

from infra.servers.embedded import ServerUrls
from infra.servers.services import Services
from infra.settings import Settings

# All that this module knows of how the project is arranged.
from libra_fleet.cli.main import libra as root
from schemas.runs import RUN_ID
from tests.support.database import fresh_database
from tests.support.fleet import ROOT, WAIT_S, Fleet, fleet_on, kill_tree
from tests.support.gateway import free_port, start_gateway
from tests.support.receiver import Receiver

GOLDENS: Final = Path(__file__).resolve().parents[1] / "golden"
MOST_COLUMNS: Final = 110
RECORDING: Final = os.environ.get("LIBRA_WRITE_GOLDENS") == "1"
GUARD: Final = ("--guard", "fake")
BOTH: Final = "cascade:large@0.2:0.95=fake>fake"

TRUTHS: Final = ("安全", "不安全")
ENDS: Final = ("safe", "unsafe", "unparseable", "unsafe")
ROWS: Final = [
    {
        "id": f"r{at}",
        "question": f"问题 {at}" if at % 2 else "",
        "response": f"[[fake:{ENDS[at % 4]}]] 文本 {at}",
        "label": TRUTHS[at // 2 % 2],
        "source": ("Real Data", "Synthetic Data")[at % 2],
        "category_name": "违法犯罪",
        "sub_category_name": "暴力",
    }
    for at in range(12)
]
POLICY: Final = """\
policy: house
version: {version}
description: For the recordings
thresholds: {{ review: 0.5, block: {block} }}
categories:
  违法犯罪: {{ review: 0.2 }}
surfaces:
  chat: {{ thresholds: {{ block: 0.4 }} }}
unparseable: review
dead: block
controversial: pass
"""


# What a command is, and what it says

NOW_CALLED: Final[dict[tuple[str, ...], tuple[str, ...]]] = {}
"""Commands by their words when they were recorded, and by their words now, where these differ."""


def called_now(*words: str) -> list[str]:
    """The words of a command line as they are now."""
    for size in range(len(words), 0, -1):
        if words[:size] in NOW_CALLED:
            return [*NOW_CALLED[words[:size]], *words[size:]]
    return list(words)


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def libra(*words: str, typed: str | None = None) -> Said:
    """Run `libra` with these words, in this process, without the root's own work on the process's logs and traces."""
    _, command, rest = root.resolve_command(click.Context(root), called_now(*words))
    assert command is not None
    done = CliRunner().invoke(command, rest, input=typed)
    return Said(getattr(done.exception, "exit_code", done.exit_code), done.stdout, f"{done.stderr}{done.exception!r}")


def told_by(*words: str, code: int = 0, typed: str | None = None) -> str:
    """What a command prints that ends as expected."""
    said = libra(*words, typed=typed)
    assert said.code == code, f"libra {' '.join(words)}: {said}"
    return said.out


# What is recorded


class Recorder:
    """Recordings by file name. Nothing is compared here."""

    def __init__(self, folder: Path, namespace: dict[str, str]) -> None:
        self.observed: dict[str, str] = {}
        self._places = {str(folder): "<folder>", str(ROOT): "<project>", **namespace}

    def json(self, name: str, content: Any, *, unordered: bool = False) -> None:
        """Record JSON; an `unordered` list is one whose order is a matter of speed."""
        assert f"{name}.json" not in self.observed
        observed = sorted(map(self._plain, content), key=on_a_line) if unordered else self._plain(content)
        self.observed[f"{name}.json"] = f"{on_lines(observed)}\n"

    def command(self, name: str, *words: str, code: int = 0, typed: str | None = None, unordered: bool = False) -> Any:
        """Record what a command prints as JSON, and hand it over."""
        content = json.loads(told_by(*words, code=code, typed=typed))
        self.json(name, content, unordered=unordered)
        return content

    def lines(self, name: str, text: str, *, unordered: bool = False) -> list[Any]:
        """Record JSON lines, and hand them over."""
        rows = [json.loads(line) for line in text.splitlines()]
        self.json(name, rows, unordered=unordered)
        return rows

    def page(self, name: str, text: str, *, whole: str = "") -> None:
        """Record a page of metrics; of families whose names begin otherwise than `whole` only the heads."""
        self.observed[f"{name}.txt"] = metrics_page(text, whole)

    def _plain(self, content: Any) -> Any:
        return plain(content, Tokens(self._places))


def on_a_line(content: Any) -> str:
    """JSON on one line, equal for equal content."""
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def on_lines(content: Any, indent: str = "") -> str:
    """JSON whose parts have a line each if they fit there, so that a difference is read at a glance."""
    whole = on_a_line(content)
    if len(indent) + len(whole) <= MOST_COLUMNS or not isinstance(content, dict | list):
        return whole
    deeper = indent + " "
    if isinstance(content, list):
        opening, closing, parts = "[", "]", [on_lines(part, deeper) for part in content]
    else:
        opening, closing = "{", "}"
        parts = [f"{on_a_line(key)}: {on_lines(value, deeper)}" for key, value in sorted(content.items())]
    return opening + ",".join(f"\n{deeper}{part}" for part in parts) + f"\n{indent}{closing}"


class Tokens:
    """Tokens for what differs by its form: ids numbered as they appear, moments, places."""

    ids: Final = {
        "run": rf"(?<![0-9a-z]){RUN_ID}(?![0-9a-f])",
        "key": r"(?<![0-9a-z])k[0-9a-f]{10}(?![0-9a-f])",
        "batch": r"batch_[0-9a-f]{20}",
        "file": r"file-[0-9a-f]{20}",
        "letter": r"msg_[0-9a-f]{32}",
        "endpoint": r"we_[0-9a-f]{16}",
        "request": r"req_[0-9a-f]{32}",
        "id": r"(?<![0-9a-z])[0-9a-f]{32}(?![0-9a-z])",
    }
    forms: Final = {
        "<secret>": r"whsec_[A-Za-z0-9+/=]+",
        "<time>": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?",
        r"\1:<port>": r"(127\.0\.0\.1|localhost):\d+",
        "<host>-<pid>": r"<host>-\d+",
        r"\1<day>": r"(\blive-[a-z-]+-)\d{8}\b",
    }

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places
        self._numbers: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        for place, token in self._places.items():
            text = text.replace(place, token)
        for kind, form in self.ids.items():
            text = re.sub(form, lambda match, kind=kind: self._numbered(kind, match[0]), text)
        for token, form in self.forms.items():
            text = re.sub(form, token, text)
        return text

    def _numbered(self, kind: str, name: str) -> str:
        known = sum(token.startswith(f"<{kind} ") for token in self._numbers.values())
        return self._numbers.setdefault(name, f"<{kind} {known + 1}>")


BY_KEY: Final = {
    "<time>": re.compile(r".+_at"),
    "<number>": re.compile(
        r".+_s|seconds|money|speed_ratio|device_s_saved|device_s_per_1000|busy_share|padding_share|budget_tokens"
    ),
    "<secret>": re.compile(r"key|secret|receipt"),
    "<cursor>": re.compile(r"cursor|next_cursor"),
}
KNOWN_LATER: Final = re.compile(r"busy_share|padding_share|items_per_s|tokens_per_s|budget_tokens")
"""A worker tells these when it has seen enough: nothing or a number."""


def plain(content: Any, tokens: Tokens, key: str = "") -> Any:
    """Content with tokens in place of what differs; `key` is what it stands under."""
    token = next((token for token, named in BY_KEY.items() if named.fullmatch(key)), None)
    if isinstance(content, dict):
        return {tokens(name): plain(value, tokens, key if token else name) for name, value in content.items()}
    if isinstance(content, list):
        return [plain(value, tokens) for value in content]
    if token and (content is not None or KNOWN_LATER.fullmatch(key)):
        return token
    if isinstance(content, float):
        return float(f"{content:.9g}")
    return tokens(content) if isinstance(content, str) else content


SAMPLE: Final = re.compile(r"(?P<name>\w+)(?P<labels>\{.*\})? (?P<value>\S+)")
BY_SPEED: Final = re.compile(
    r"libra_device_.+|libra_reconciler_runs_total|.+_created|.+_seconds|.+_seconds_sum|.+_bucket"
    r"|libra_gateway_(requests_total|request_seconds_.+|commit_items_.+|verdict_wait_seconds_.+)"
)
"""Samples whose value is a matter of speed, or of how often somebody looked."""


def metrics_page(text: str, whole: str) -> str:
    """Families by name, samples by labels, values that differ as tokens."""
    families: dict[str, list[str]] = {}
    samples: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            samples = families.setdefault(line.split()[2], [])
        if line.startswith("#"):
            samples.append(line)
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        if not found["name"].startswith(whole):
            continue
        labels = re.sub(r'worker="[^"]*"', 'worker="<worker>"', found["labels"] or "")
        value = "<number>" if BY_SPEED.fullmatch(found["name"]) else found["value"]
        samples.append(f"{found['name']}{labels} {value}")
    return "\n".join(line for name in sorted(families) for line in sorted(families[name])) + "\n"


# One small fleet and what is done to it


class Scenario:
    """A fleet of two guards that are both the fake one, and everything that is asked of it."""

    def __init__(
        self, fleet: Fleet, folder: Path, found: Recorder, hook: Receiver, set_env: Callable[[str, str], None]
    ) -> None:
        self.fleet = fleet
        self.set_env = set_env
        self.folder = folder
        self.found = found
        self.hook = hook
        self.workers: list[subprocess.Popen[bytes]] = []
        self.api = self.exporter = ""
        self.headers: dict[str, dict[str, str]] = {}

    def run(self) -> None:
        """From an empty ledger to the last scrape."""
        self.write_files()
        self.start()
        self.ask_without_servers()
        self.set_up()
        self.await_workers("fake")
        self.judge_in_bulk()
        self.leave_work_unserved()
        self.cancel()
        self.serve_the_rest()
        self.let_items_die()
        self.judge_live()
        self.go_through_the_gateway()
        self.order_a_batch()
        self.decide_anew()
        self.take_out_and_in()
        self.look_back()
        self.scrape()

    def write_files(self) -> None:
        rows = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        self.write("rows.jsonl", *rows)
        self.write("mixed.jsonl", *rows[:4], rows[1], json.dumps({**ROWS[5], "label": "?"}), "{")
        self.write("deadly.jsonl", json.dumps({**ROWS[0], "response": "[[fake:crash]]"}, ensure_ascii=False), rows[1])
        for version, block in ((1, 0.95), (2, 0.8)):
            self.write(f"house-{version}.yaml", POLICY.format(version=version, block=block))

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def start(self) -> None:
        """What takes its time to start, side by side."""
        self.start_process("collector")
        self.start_worker("fake")
        self.drill = self.start_process(
            *("drill", "--on-configured", "--faults", "1", "--mix", "device=1", "--items", "20", "--lease", "1"),
            *("--out", str(self.folder / "drill.json")),
        )

    def start_process(self, *words: str) -> subprocess.Popen[bytes]:
        return self.fleet.start(*called_now(*words))

    def start_worker(self, guard: str, *options: str) -> None:
        named = guard if guard == "fake" else f"{guard}=fake"
        self.workers.append(self.start_process("worker", "--guard", named, "--devices", "cpu", *options))

    def await_workers(self, *guards: str) -> None:
        def all_are_ready() -> bool:
            return set(guards) <= {one.guard for one in self.fleet.announced() if one.state == "ready"}

        self.fleet.wait(all_are_ready)

    def ask_without_servers(self) -> None:
        record = self.found.command
        record("guards", "guards", "--json")
        record("guards-show", "guards", "show", "fake", "--json")
        record("curate-elements", "curate", "elements", "--json")
        told_by("curate", "combine", "curated", "--count", "4")
        told_by("curate", "queries", "curated", "--per-combination", "1")
        record("curate-status", "curate", "status", "curated", "--json")
        record("policy-test-file", "policy", "test", "house-1.yaml", "--json")

    def set_up(self) -> None:
        """Keys, an endpoint, a policy; and a gateway, an exporter and a sender."""
        record = self.found.command
        assert record("bench-list-of-none", "bench", "list", "--json") == []
        for tenant, role in (("acme", "service"), ("ops", "admin")):
            options = ("--tenant", tenant, "--role", role, "--note", "a note", "--json")
            made = record(f"keys-create-{role}", "keys", "create", *options)
            self.headers[tenant] = {"Authorization": f"Bearer {made['key']}"}
        unused = json.loads(told_by("keys", "create", "--tenant", "acme", "--json"))
        told_by("keys", "revoke", unused["id"])
        record("keys-list", "keys", "list", "--json")
        record("webhooks-endpoints-add", "webhooks", "endpoints", "add", "acme", self.hook.url, "--json")
        record("webhooks-endpoints-list", "webhooks", "endpoints", "list", "--json")
        told_by("policy", "put", "house-1.yaml")
        told_by("policy", "default", "acme", "house")
        port, exporter = free_port(), free_port()
        self.start_process("metrics-exporter", "--port", str(exporter))
        self.start_process("webhooks", "send")
        start_gateway(self.fleet, port)
        self.api, self.exporter = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{exporter}"

    def judge_in_bulk(self) -> None:
        record = self.found.command
        record("bench-run", "bench", "run", "demo", "--limit", "6", *GUARD, "--name", "demo", "--json")
        skipping = ("--skip-invalid", "--repeat", "2", "--name", "mixed")
        record("bench-run-skip-invalid", "bench", "run", "mixed.jsonl", *GUARD, *skipping, "--json")
        writing = ("--mode", "generate", "--name", "writing")
        record("bench-run-generate", "bench", "run", "rows.jsonl", *GUARD, *writing, "--json")
        record("bench-report", "bench", "report", "mixed", "--price-per-gpu-hour", "2", "--json")
        record("bench-parity", "bench", "parity", "rows.jsonl", *GUARD, "--show-text", "--json")

    def leave_work_unserved(self) -> None:
        """Items for guards that no worker serves yet stand still, so that they can be observed."""
        record = self.found.command
        record("bench-submit", "bench", "submit", "rows.jsonl", "--guard", "idle=fake", "--name", "idle", "--json")
        record("bench-submit-cascade", "bench", "submit", "rows.jsonl", "--guard", BOTH, "--name", "both", "--json")
        self.fleet.wait(lambda: len(self.status()["runs"]) == 3)  # a collector has opened the cascade's second stage
        (self.child,) = record("remoderate", "remoderate", "--run", "demo", "--guard", "large=fake", "--json")
        # A lease that was being renewed when its chunk ended is noted for some seconds more.
        self.fleet.wait(lambda: not any(queue["held"] for queue in self.status()["queues"]))
        record("status-with-work-unserved", "status", "--json")
        self.get("run-sealed", f"/v1/runs/{self.id_of('idle')}", "ops")

    def cancel(self) -> None:
        self.start_worker("large", "--fake-error", "0.3")
        told_by("bench", "cancel", "idle")
        self.found.command("bench-watch-cancelled", "bench", "watch", "idle", "--json", code=7)
        self.found.command("dead-list-cancelled", "dead", "list", "idle", "--limit", "3", "--json")
        self.get("run-cancelled", f"/v1/runs/{self.id_of('idle')}", "ops")

    def serve_the_rest(self) -> None:
        record = self.found.command
        self.await_workers("large")
        record("bench-resume-cascade", "bench", "resume", "both", "--json")
        record("bench-status", "bench", "status", "both", "--json")
        record("bench-watch-child", "bench", "watch", self.child["run"], "--json")
        told_by("bench", "run", "rows.jsonl", "--guard", "large=fake", "--name", "alone", "--json")
        record("bench-compare", "bench", "compare", "demo", self.child["run"], "--json")
        record("bench-compare-three", "bench", "compare", "writing", "alone", "both", "--json")
        record("cascade-fit", "cascade", "fit", "--run", "alone", "--target-error", "0.4", "--json")
        record("cascade-report", "cascade", "report", "both", "--json")
        record("cascade-report-against", "cascade", "report", "both", "--against", "alone", "--json")
        self.get("run-with-parent", f"/v1/runs/{self.child['run']}", "ops")

    def let_items_die(self) -> None:
        record = self.found.command
        order = ("deadly.jsonl", *GUARD, "--name", "deadly")
        record("bench-run-deadly", "bench", "run", *order, "--json", code=7)
        record("dead-list", "dead", "list", "deadly", "--json")
        record("dead-show", "dead", "show", "deadly", "r0")

    def judge_live(self) -> None:
        record = self.found.command
        unsafe = ("judge", "[[fake:unsafe]] 文本", *GUARD, "--json")
        record("judge", *unsafe)
        record("judge-cached", *unsafe)
        record("judge-unparseable", "judge", "[[fake:unparseable]]", "--question", "问", *GUARD, "--no-cache", "--json")
        record("judge-generate", "judge", "-", "--mode", "generate", *GUARD, "--json", typed="[[fake:safe]]")
        record("judge-dead", "judge", "[[fake:crash]]", *GUARD, "--json", code=7)

    def go_through_the_gateway(self) -> None:
        texts = [{"text": "[[fake:safe]]"}, {"question": "q", "response": "[[fake:unsafe]]"}]
        more = {"custom_id": "c-1", "metadata": {"surface": "chat"}, "callback_url": self.nowhere}
        items = [texts[0], {**texts[1], **more}, {"text": "[[fake:unparseable]]", "custom_id": "c-2"}]
        asked = {"items": items, "guard": "fake"}
        self.post("items-judged", "/v1/items", asked, prefer="wait=30")
        later = self.post("items-accepted", "/v1/items", {"items": texts[:1]})
        name = later["data"][0]["id"]
        self.fleet.wait(lambda: self.ask("GET", f"/v1/items/{name}").json()["status"] == "settled")
        self.get("item", f"/v1/items/{name}")
        self.get("item-as-admin", f"/v1/items/{name}", "ops")
        one, many = {"input": "[[fake:unsafe]]"}, {"input": ["[[fake:safe]]", "[[fake:unparseable]]"], "model": "fake"}
        self.post("moderation", "/v1/moderations", one, prefer="wait=30")
        self.post("moderations", "/v1/moderations", many, prefer="wait=30")
        self.post("moderation-not-in-time", "/v1/moderations", one, prefer="wait=0")
        self.post("problem-guard-not-served", "/v1/moderations", {"input": "text", "model": "libra-tiny"})
        self.get("verdicts", "/v1/verdicts?limit=4")
        self.get("problem-run-of-another-tenant", f"/v1/runs/{self.id_of('demo')}")
        self.get("problem-run-unknown", "/v1/runs/r0123456789")
        self.get("problem-run-malformed", "/v1/runs/x")
        self.post("problem-field", "/v1/items", {"items": [{"text": " "}]})
        self.post("problem-unknown-field", "/v1/moderations", {"inputs": "x"})
        self.found.json("gateway-problem-no-key", self.answer(httpx2.get(f"{self.api}/v1/verdicts")))
        self.set_env("LIBRA_API_KEY", self.headers["acme"]["Authorization"].removeprefix("Bearer "))
        submit = ("submit", "rows.jsonl", "--url", self.api, "--policy", "house")
        self.found.lines("submit-wait", told_by(*submit, "--wait"), unordered=True)
        self.found.lines("submit", told_by(*submit), unordered=True)
        self.fleet.wait(lambda: not any(run["pending"] for run in self.status()["runs"]))

    @property
    def nowhere(self) -> str:
        """The address of a receiver that is not there."""
        return "http://127.0.0.1:9/hook"

    def order_a_batch(self) -> None:
        """Through OpenAI's two endpoints."""
        line = {"custom_id": "b-0", "method": "POST", "url": "/v1/moderations", "body": {"input": "[[fake:safe]]"}}
        other = {**line, "custom_id": "b-1", "body": {"input": "[[fake:unsafe]]"}}
        content = "\n".join(map(json.dumps, (line, other))).encode()
        sent = self.ask("POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
        self.found.json("gateway-file", self.answer(sent))
        order = {"input_file_id": sent.json()["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
        batch = self.post("batch-ordered", "/v1/batches", {**order, "metadata": {"a": "b"}})["id"]
        self.fleet.wait(lambda: self.ask("GET", f"/v1/batches/{batch}").json()["status"] == "completed")
        done = self.get("batch", f"/v1/batches/{batch}")
        self.get("batches", "/v1/batches")
        output = self.ask("GET", f"/v1/files/{done['output_file_id']}/content").text
        self.found.lines("gateway-batch-output", output, unordered=True)
        self.get("run-of-a-tenant", f"/v1/runs/{done['run_id']}")
        self.post("problem-batch-cancelled-late", f"/v1/batches/{batch}/cancel", {})
        self.found.json("gateway-file-deleted", self.answer(self.ask("DELETE", f"/v1/files/{sent.json()['id']}")))

    def decide_anew(self) -> None:
        record = self.found.command
        record("policy-test-run", "policy", "test", "house-2.yaml", "--verdicts", "demo", "--json")
        sampled = told_by("policy", "test", "default", "--sample", "1000", "--surface", "chat", "--json")
        self.found.json("policy-test-sample", without_examples(json.loads(sampled)))
        told_by("policy", "put", "house-2.yaml")
        apply = ("policy", "apply", "house", "--since", "1d", "--json")
        self.found.json("policy-apply", without_examples(json.loads(told_by(*apply))))
        self.found.json("policy-apply-yes", without_examples(json.loads(told_by(*apply, "--yes"))))
        record("policy-list", "policy", "list", "--json")
        record("policy-show", "policy", "show", "house@1")

    def take_out_and_in(self) -> None:
        """Exports, the benchmark's own files, and what is made of them."""
        self.found.lines("export", told_by("export", "mixed", "--out", "-", "--text"))
        self.found.lines("export-errors", told_by("export", "mixed", "--out", "-", "--errors"))
        told_by("export", "writing", "--out", "critic.jsonl", "--format", "critic", "--text")
        self.found.lines("export-critic", (self.folder / "critic.jsonl").read_text(encoding="utf-8"))
        theirs = ("import", "critic.jsonl", "--guard", "theirs", "--name", "theirs")
        self.found.command("import", *theirs, "--json")
        measured = ("--predict_root", "critic.jsonl", "--label_path", "mixed.jsonl", "--json")
        self.found.command("metrics", "metrics", *measured)
        told_by("infer", "--base_model", "fake", "--data_path", "rows.jsonl", "--out_path", "inferred")
        self.found.lines("infer", (self.folder / "inferred" / "0-of-1.jsonl").read_text(encoding="utf-8"))

    def look_back(self) -> None:
        record = self.found.command
        sent = self.webhook_messages
        self.fleet.wait(lambda: all(message["last_status"] or message["last_error"] for message in sent()))
        self.found.json("webhooks-list", self.webhook_messages(), unordered=True)
        self.found.json("webhooks-sent", self.sent(), unordered=True)
        record("bench-list", "bench", "list", "--json")
        for run in ("mixed", "both", "deadly", "idle"):
            record(f"verify-{run}", "verify", run, "--json")
        record("cost", "cost", "--json", unordered=True)
        record("cost-of-a-run", "cost", "--run", "demo", "--price-per-gpu-hour", "2", "--json")
        record("cost-of-a-tenant", "cost", "--tenant", "acme", "--json", unordered=True)
        self.await_workers("fake", "large")
        record("status", "status", "--json")
        self.get("readyz", "/readyz")
        self.get("healthz", "/healthz")
        self.found.json("gateway-operations", operations(self.ask("GET", "/openapi.json").json()))
        findings = json.loads(libra("doctor", *GUARD, "--devices", "cpu", "--json").out)
        self.found.json("doctor", list(map(finding, findings)))
        self.fleet.wait(lambda: self.drill.poll() is not None)
        self.found.json("drill", drilled(json.loads((self.folder / "drill.json").read_text(encoding="utf-8"))))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(told_by("status", "--json"))
        return found

    def sent(self) -> list[dict[str, Any]]:
        """What the receiver got of three items, one of them decided anew, with the names of our headers."""
        got = [
            (json.loads(one.body), sorted(name for name in one.headers if "webhook" in name))
            for one in self.hook.received
        ]
        return [
            {"body": body, "headers": ours} for body, ours in got if body["data"]["custom_id"] in ("c-1", "c-2", "b-1")
        ]

    def webhook_messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(told_by("webhooks", "list", "--limit", "200", "--json"))
        return found

    def scrape(self) -> None:
        """Once everything has been counted: processes add their counts up once a second."""
        pages = {"exporter": f"{self.exporter}/metrics", "gateway": f"{self.api}/metrics"}
        runs = json.loads(told_by("bench", "list", "--limit", "100", "--json"))
        by_commands = ("idle", "theirs")  # the commands that cancel or import count nothing
        settled = sum(run["settled"] for run in runs if run["name"] not in by_commands)

        def all_is_counted() -> bool:
            page = httpx2.get(pages["exporter"]).text
            return (counted(page), page.count("libra_device_budget_tokens{")) == (settled, len(self.workers))

        self.fleet.wait(all_is_counted)
        self.found.page("exporter", httpx2.get(pages["exporter"]).text)
        self.found.page("gateway-metrics", httpx2.get(pages["gateway"]).text, whole="libra_gateway_")

    def id_of(self, run: str) -> str:
        return str(json.loads(told_by("bench", "status", run, "--json"))["run"])

    # The gateway

    def ask(self, method: str, path: str, tenant: str = "acme", **more: Any) -> httpx2.Response:
        headers = {**self.headers[tenant], **more.pop("headers", {})}
        return httpx2.request(method, f"{self.api}{path}", headers=headers, timeout=WAIT_S, **more)

    def get(self, name: str, path: str, tenant: str = "acme") -> Any:
        got = self.ask("GET", path, tenant)
        self.found.json(f"gateway-{name}", self.answer(got))
        return got.json()

    def post(self, name: str, path: str, body: dict[str, Any], *, prefer: str | None = None) -> Any:
        got = self.ask("POST", path, json=body, headers={"Prefer": prefer} if prefer else {})
        self.found.json(f"gateway-{name}", self.answer(got))
        return got.json()

    @staticmethod
    def answer(got: httpx2.Response) -> dict[str, Any]:
        """What a caller reads of an answer."""
        return {"status": got.status_code, "type": got.headers["content-type"], "body": got.json()}


def operations(openapi: dict[str, Any]) -> dict[str, Any]:
    """What can be asked of the gateway: without the names of classes and functions, which may change."""
    return {
        f"{method.upper()} {path}": {
            "parameters": sorted(f"{one['in']} {one['name']}" for one in asked.get("parameters", [])),
            "body": sorted(asked.get("requestBody", {}).get("content", {})),
            "answers": sorted(asked["responses"]),
        }
        for path, methods in openapi["paths"].items()
        for method, asked in methods.items()
    }


def without_examples(diff: dict[str, Any]) -> dict[str, Any]:
    """A policy's difference over several runs, whose order depends on their ids: how many examples, not which."""
    changes = {name: {**change, "examples": len(change["examples"])} for name, change in diff["changes"].items()}
    return {**diff, "changes": changes}


def finding(found: dict[str, str]) -> dict[str, str]:
    """What the doctor says: of this machine that it says something, of servers and packages no numbers."""
    check = found["check"]
    if check in ("disk", "files", "devices", "device memory"):
        return {name: value if name == "check" else "<of this machine>" for name, value in found.items()}
    if check in ("versions", "redis", "postgres", "clocks"):
        return {**found, "what": re.sub(r"\d[\w.+]*", "<number>", found["what"])}
    return found


def drilled(report: dict[str, Any]) -> dict[str, Any]:
    """A drill's report; its counts and what it found too slow are a matter of speed."""
    given = ("seed", "number", "fault")
    tokens = {int: "<number>", float: "<number>", str: "<word>"}
    masked = {name: value if name in given else tokens.get(type(value), value) for name, value in report.items()}
    faults = report.get("faults")
    return masked if faults is None else {**masked, "faults": list(map(drilled, faults)), "breaches": []}


def counted(page: str) -> int:
    """Items that a page says have settled."""
    return int(
        sum(float(value) for value in re.findall(r"^libra_items_settled_total\{.*\} (\S+)$", page, re.MULTILINE))
    )


# The recordings


@pytest.fixture(scope="module")
def observed(servers: ServerUrls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything that was observed, by the name of its recording."""
    folder = tmp_path_factory.mktemp("observed").resolve()
    patient = {"bulk_lease_s": 120, "live_lease_s": 120, "wait_for_servers_s": 20}  # nothing is tried twice
    settings = Settings(state_dir=folder / "state", reconcile_every_s=0.2, drain_s=5, **patient)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushdb()
    own = {
        "LIBRA_WEBHOOK_ALLOW": "127.0.0.1",
        "LIBRA_WEBHOOK_RETRY_S": "[3600]",
        "LIBRA_WEBHOOK_POLL_S": "0.2",
        "LIBRA_MAX_ITEM_DEATHS": "1",
    }
    found = Recorder(folder, {socket.gethostname(): "<host>"})
    with (
        fresh_database(servers) as database_url,
        Receiver().running() as hook,
        pytest.MonkeyPatch.context() as environment,
    ):
        services = Services(settings, servers.redis_url, database_url, embedded=True)
        with fleet_on(services, folder, **own) as fleet:
            for name in [name for name in os.environ if name.startswith("LIBRA_")]:
                environment.delenv(name)
            urls = {"LIBRA_REDIS_URL": servers.redis_url, "LIBRA_DATABASE_URL": database_url}
            for name, value in {**urls, **own, "LIBRA_STATE_DIR": str(folder / "state")}.items():
                environment.setenv(name, value)
            environment.chdir(folder)
            scenario = Scenario(fleet, folder, found, hook, environment.setenv)
            try:
                scenario.run()
            finally:
                for worker in scenario.workers:  # idle by now: draining would only take its time
                    kill_tree(worker)
        services.engine.dispose()
    if RECORDING:
        record_again(found.observed)
    return found.observed


def record_again(observed: dict[str, str]) -> None:
    """Write every recording and delete those that are not observed any more."""
    GOLDENS.mkdir(exist_ok=True)
    for path in GOLDENS.iterdir():
        path.unlink()
    for name, text in observed.items():
        (GOLDENS / name).write_text(text, encoding="utf-8")


def recordings() -> Sequence[str]:
    """The names of all recordings."""
    return sorted(path.name for path in GOLDENS.glob("*"))


def test_everything_that_is_told_is_recorded_and_the_other_way_round(observed: dict[str, str]) -> None:
    assert sorted(observed) == recordings()


@pytest.mark.parametrize("name", recordings())
def test_what_is_told_is_what_was_recorded(observed: dict[str, str], name: str) -> None:
    recorded = (GOLDENS / name).read_text(encoding="utf-8").splitlines()
    now = observed.get(name, "").splitlines()

    difference = "\n".join(difflib.unified_diff(recorded, now, f"recorded/{name}", f"observed/{name}", lineterm=""))
    if difference:
        pytest.fail(difference, pytrace=False)
