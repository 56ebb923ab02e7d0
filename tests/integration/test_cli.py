"""The command line on embedded servers, as a newcomer meets it: every rule that its users rely on."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import sqlalchemy as sa

from infra.broker.app import JUDGE, queue_of
from infra.errors import DataError, UsageError
from infra.ledger import intake
from infra.ledger.runs import find_run, run_status
from infra.ledger.stats import cached_count
from infra.ledger.tables import items, runs
from infra.process import wait_until
from infra.servers.services import Services, services
from infra.settings import Settings
from libra_fleet.machine.fleet import LocalFleet
from producer.intake.live import LiveClient
from producer.intake.submit import seal, submit
from schemas.items import MAX_ITEM_BYTES, Item
from schemas.messages import Lane
from schemas.runs import RunReport, RunSpec
from schemas.verdicts import Outcome, Verdict
from tests.support.cli import Cli
from tests.support.fleet import Fleet, children
from tests.support.receiver import Receiver
from tests.support.traces import Seen, spans_in, tree

SECRET = "绝不能进日志的用户原文"
GUARD = ("--guard", "fake")
RECORDS = [
    {
        "id": f"r{number}",
        "question": "",
        "response": f"[[fake:{'unsafe' if number % 3 else 'safe'}]] 文本 {number} {SECRET}",
        "label": "不安全" if number % 2 else "安全",
        "source": "Real Data",
        "category_name": "违法犯罪",
    }
    for number in range(20)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def traces() -> Iterator[Receiver]:
    """Where the module's fleet sends its traces."""
    with Receiver().running() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def found(home: Path, traces: Receiver) -> Iterator[Services]:
    """The module's embedded servers with a fleet on them; commands given the same state folder share both."""
    with services(Settings(state_dir=home / "state")) as servers, pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIBRA_OTLP_ENDPOINT", f"http://127.0.0.1:{traces.port}")
        with LocalFleet(servers, "fake") as fleet:
            environment.undo()
            yield servers
            fleet.check()


@pytest.fixture(scope="module")
def libra(home: Path, found: Services) -> Cli:
    write(home / "good.jsonl", RECORDS)
    return Cli(home, LIBRA_STATE_DIR=str(found.settings.state_dir))


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def ledger_rows(found: Services) -> list[int]:
    with found.engine.connect() as connection:
        return [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in (runs, items)]


def test_help_shows_every_command_even_where_an_extra_is_missing(tmp_path: Path) -> None:
    shown = Cli(tmp_path)("--help")

    assert shown.returncode == 0
    assert {"run", "fleet", "judge", "guards", "submit"} <= set(shown.stdout.split())
    assert "\\b" not in Cli(tmp_path)("run", "--help").stdout


# Formats


@pytest.mark.parametrize("source", ["array.json", "good.jsonl", "table.parquet", "folder", "-"])
def test_a_run_from_every_format_ends_with_the_same_whole_report(libra: Cli, source: str) -> None:
    (libra.folder / "array.json").write_text(json.dumps(RECORDS, ensure_ascii=False, indent=1), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(RECORDS), libra.folder / "table.parquet")
    (libra.folder / "folder").mkdir(exist_ok=True)
    write(libra.folder / "folder" / "a.jsonl", RECORDS[:7])
    (libra.folder / "folder" / "b.json").write_text(json.dumps(RECORDS[7:], ensure_ascii=False), encoding="utf-8")
    typed = (libra.folder / "good.jsonl").read_text(encoding="utf-8") if source == "-" else ""

    report = RunReport.model_validate_json(json.dumps(libra.json("run", "start", source, *GUARD, typed=typed)))

    assert (report.state, report.counts.accepted, report.counts.scored) == ("complete", 20, 20)
    # 10 of 20 agree: even numbers are safe by the truth, every third by the guard.
    (average,) = [group for group in report.groups if group.kind == "average"]
    assert average.value("accuracy") == sum((n % 2 == 0) == (n % 3 == 0) for n in range(20)) / 20
    assert report.fingerprint["guard"] == "fake"


def test_a_run_prints_its_table_on_standard_output_and_writes_its_report(libra: Cli) -> None:
    done = libra("run", "start", "good.jsonl", *GUARD, "--out", "reports/new.json")

    assert done.returncode == 0
    assert "Accuracy" in done.stdout
    assert "20 accepted · 20 scored" in done.stdout
    assert "report written to reports/new.json" in done.stderr
    assert json.loads((libra.folder / "reports" / "new.json").read_text(encoding="utf-8"))["counts"]["scored"] == 20


def test_cost_is_in_the_report_and_listed_by_run_and_by_tenant(libra: Cli) -> None:
    report = RunReport.model_validate_json(json.dumps(libra.json("run", "start", "good.jsonl", *GUARD)))
    assert report.cost is not None
    assert (report.cost.measured, report.cost.devices) == (20, ("simulated",))
    assert report.cost.prompt_tokens > 20

    (one,) = libra.json("run", "cost", "--run", report.run_id, "--price-per-device-hour", "2")
    assert (one["device_s"], one["verdicts"]) == (report.cost.device_s, 20)
    assert one["money"] == pytest.approx(report.cost.device_s / 1800)
    (benchmarks,) = [row for row in libra.json("run", "cost") if (row["tenant"], row["guard"]) == (None, "fake")]
    assert benchmarks["verdicts"] >= 20
    assert libra("run", "cost", "--tenant", "nobody").returncode == UsageError.exit_code


# Bad input

BAD_ROWS = (
    ('{"id" "x"}', "broken JSON"),
    ({"id": "label", "label": "maybe"}, "label: unknown label 'maybe'"),
    ({"id": "r1"}, "duplicate id 'r1', first at bad.jsonl:2"),
    ({"id": "empty", "response": " "}, "response: the text to judge is empty"),
    ({"id": "big", "response": "x" * (1 << 20)}, "response: 1,048,576 bytes long"),
    ({"id": "big", "question": "q" * MAX_ITEM_BYTES}, "question and response: 524,3"),
    ({"id": "nothing", "response": None}, "no text to judge"),
    ({"id": "number", "response": 7}, "response: Input should be a valid string"),
    ({"id": "a\0b"}, "id: contains a NUL character"),
)


def test_bad_rows_are_named_by_file_and_line_and_nothing_is_submitted(libra: Cli, found: Services) -> None:
    changed = [change if isinstance(change, str) else json.dumps(RECORDS[0] | change) for change, _ in BAD_ROWS]
    lines = [json.dumps(record) for record in RECORDS[:3]] + changed
    (libra.folder / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    before = ledger_rows(found)

    done = libra("run", "start", "bad.jsonl", *GUARD)

    assert (done.returncode, done.stdout) == (3, "")
    assert "9 bad rows:" in done.stderr
    for number, (_, message) in enumerate(BAD_ROWS, start=4):
        assert f"  bad.jsonl:{number}: {message}" in done.stderr
    assert "try --ids row" in done.stderr
    assert "nothing was submitted" in done.stderr
    assert ledger_rows(found) == before


def test_a_file_in_another_encoding_is_read_and_the_guess_is_said(libra: Cli) -> None:
    (libra.folder / "gbk.jsonl").write_bytes((libra.folder / "good.jsonl").read_text("utf-8").encode("gb18030"))

    done = libra("run", "start", "gbk.jsonl", *GUARD, "--dry-run", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["valid"] == 20
    assert "gbk.jsonl: read as gb18030, a guess; --encoding names another" in done.stderr


def test_a_dry_run_shows_three_items_as_they_would_be_judged_and_submits_nothing(libra: Cli, found: Services) -> None:
    rows = [{"goal": f"请求 {at}", "harm": at % 2} for at in range(5)]
    (libra.folder / "dry.csv").write_text("goal,harm\n" + "".join(f"{row['goal']},{row['harm']}\n" for row in rows))
    before = ledger_rows(found)

    options = ("--field", "label=harm", "--label", "unsafe=1")
    done = libra("run", "start", "dry.csv", *GUARD, *options, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prompt · label") == 3
    assert "dry-1 · prompt · label safe" not in done.stdout, "rows are named by their lines, below the header"
    assert "dry-2 · prompt · label safe" in done.stdout
    assert "  prompt: 请求 1" in done.stdout
    assert "5 items, 5 of them labelled" in done.stdout
    assert "label from 'harm', question from 'goal'" in done.stderr
    assert ledger_rows(found) == before


def test_a_dry_run_names_each_kind_of_bad_row_once_with_what_would_help(libra: Cli) -> None:
    rows = [{"id": 1, "text": "x", "label": at % 2} for at in range(40)]
    (libra.folder / "faults.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    refused = libra("run", "start", "faults.jsonl", *GUARD, "--dry-run")
    mapped = libra("run", "start", "faults.jsonl", *GUARD, "--dry-run", "--label", "unsafe=1", "--ids", "row")

    assert refused.returncode == 3
    assert "40 bad rows:" in refused.stderr
    assert "faults.jsonl:1: label: 0 says neither safe nor unsafe" in refused.stderr
    assert "(and 19 more like it)" in refused.stderr
    assert "try --label unsafe=0" in refused.stderr
    assert mapped.returncode == 0, mapped.stderr


def test_the_users_word_on_reading_goes_with_the_run(libra: Cli, found: Services) -> None:
    (libra.folder / "words.csv").write_text("note,bad\nfirst,1\nsecond,0\n")
    options = ("--field", "text=note", "--field", "label=bad", "--label", "unsafe=1", "--name", "words")

    done = libra("run", "start", "words.csv", *GUARD, *options)
    again = libra("run", "start", "words.csv", *GUARD, *options[:-4], "--label", "safe=1", "--name", "words")

    assert done.returncode == 0, done.stderr
    assert again.returncode == 2
    assert "with reading" in again.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--field", "promt=x"), "did you mean prompt"),
        (("--field", "x"), "expected NAME=COLUMN"),
        (("--label", "bad=1"), "expected unsafe=WORD"),
        (("--label", "unsafe="), "expected unsafe=WORD"),
        (("--encoding", "gbkk"), "not known"),
    ],
)
def test_a_wrong_word_on_reading_is_said_before_anything_is_read(
    libra: Cli, option: tuple[str, str], said: str
) -> None:
    done = libra("run", "start", "no-such-file.csv", *GUARD, *option)

    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "start", "missing.jsonl", *GUARD), 3, "missing.jsonl: no such file or folder"),
        (("run", "start", "", *GUARD), 3, "name of the data set is empty"),
        (("run", "start", "good.jsonl", "--guard", "fak"), 2, "no guard named 'fak'; did you mean fake?"),
        (("judge", "文本", "--guard", "liba-tiny"), 2, "did you mean libra-tiny"),
        (("run", "start", "good.jsonl", *GUARD, "--shard", "2/2"), 2, "--shard"),
        (("run", "start", "good.jsonl", *GUARD, "--seed", "1"), 2, "--limit"),
        (("run", "start", "good.jsonl", *GUARD, "--fail-under", "acuracy=1"), 2, "did you mean accuracy"),
        (("run", "start", "good.jsonl", *GUARD, "--fail-under", "accuracy=nan"), 2, "expected METRIC=VALUE"),
        (("run", "start", "good.jsonl", *GUARD, "--out", "good.jsonl/report.json"), 2, "--out good.jsonl/report.json"),
        (("run", "watch", "nobody"), 2, "no run 'nobody'"),
        (("judge", " ", *GUARD), 3, "the text to judge is empty"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_wrong_input_has_one_clear_message_its_exit_code_and_no_trace(
    libra: Cli, found: Services, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = ledger_rows(found)

    done = libra(*arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert ledger_rows(found) == before


@pytest.mark.parametrize("missing", ["LIBRA_REDIS_URL", "LIBRA_DATABASE_URL"])
def test_one_server_url_without_the_other_is_refused(tmp_path: Path, missing: str) -> None:
    urls = {"LIBRA_REDIS_URL": "redis://127.0.0.1:1/0", "LIBRA_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    del urls[missing]

    done = Cli(tmp_path, **urls)("run", "list")

    assert done.returncode == 2
    assert f"{missing} is not set" in done.stderr


def test_a_server_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path, database_url: str) -> None:
    closed = {"LIBRA_REDIS_URL": "redis://:geheim@127.0.0.1:1/0", "LIBRA_WAIT_FOR_SERVERS_S": "0"}
    write(tmp_path / "good.jsonl", RECORDS)

    no_postgres = Cli(tmp_path, **closed, LIBRA_DATABASE_URL="postgresql://me:geheim@127.0.0.1:1/x")("run", "list")
    migrated = Cli(tmp_path, **closed, LIBRA_DATABASE_URL=database_url)
    assert migrated("fleet", "migrate").returncode == 0
    no_redis = migrated("run", "submit", "good.jsonl", *GUARD)

    assert (no_postgres.returncode, no_redis.returncode) == (4, 4)
    assert "cannot reach Postgres" in no_postgres.stderr
    assert "cannot reach Redis at 127.0.0.1:1" in no_redis.stderr
    assert "geheim" not in no_postgres.stderr + no_redis.stderr
    assert "no runs yet" in migrated("run", "list").stderr


def test_skip_invalid_judges_the_rest_and_lists_and_counts_the_bad_rows(libra: Cli) -> None:
    write(libra.folder / "mixed.jsonl", [*RECORDS[:5], RECORDS[2], RECORDS[6] | {"label": "?"}])

    report = libra.json("run", "start", "mixed.jsonl", *GUARD, "--skip-invalid")

    assert (report["counts"]["accepted"], report["invalid_count"]) == (5, 2)
    assert [row["where"] for row in report["invalid_rows"]] == ["mixed.jsonl:6", "mixed.jsonl:7"]


# Which rows, how often


def test_shards_partition_the_data_set(libra: Cli, found: Services) -> None:
    shards = [libra.json("run", "start", "good.jsonl", *GUARD, "--shard", f"{index}/3") for index in range(3)]

    ids = [item_ids(found, shard["run_id"]) for shard in shards]
    assert sorted(itertools.chain(*ids)) == sorted(str(record["id"]) for record in RECORDS)
    assert [len(part) for part in ids] == [7, 7, 6]


def item_ids(found: Services, run_id: str) -> list[str]:
    with found.engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT item_id FROM items WHERE run_id = :run"), {"run": run_id}))


def test_repeat_judges_each_item_so_many_times_and_limit_takes_so_many(libra: Cli) -> None:
    report = libra.json("run", "start", "good.jsonl", *GUARD, "--repeat", "3", "--limit", "4", "--seed", "1")

    assert (report["counts"]["accepted"], report["counts"]["scored"]) == (4, 12)


# Exit codes


def test_fail_under_exits_with_7_after_the_report(libra: Cli) -> None:
    report = libra("run", "start", "good.jsonl", *GUARD, "--json", "--fail-under", "accuracy=0.99")
    enough = libra("run", "start", "good.jsonl", *GUARD, "--json", "--fail-under", "accuracy=0.1")

    assert (report.returncode, enough.returncode) == (7, 0)
    assert "accuracy is 0." in report.stderr
    assert json.loads(report.stdout)["state"] == "complete"


def test_a_run_whose_items_all_died_has_a_report_with_reasons_and_exits_with_7(libra: Cli) -> None:
    write(libra.folder / "deadly.jsonl", [{"id": "d", "response": "[[fake:crash]]", "label": "unsafe"}])

    done = libra("run", "start", "deadly.jsonl", *GUARD)

    assert done.returncode == 7
    assert "1 dead: the prompt killed the device process" in done.stdout
    assert "1 items died" in done.stderr


def test_exit_codes_and_streams_are_those_of_the_process(libra: Cli) -> None:
    missing = libra.process("run", "start", "missing.jsonl", *GUARD)
    piped = libra.process("judge", "-", *GUARD, "--json", typed="[[fake:safe]] 你好")

    assert (missing.returncode, missing.stdout) == (DataError.exit_code, "")
    assert missing.stderr.splitlines() == ["libra: missing.jsonl: no such file or folder"]
    assert (piped.returncode, json.loads(piped.stdout)["label"]) == (0, "safe")


# Names


def test_the_same_name_goes_on_with_the_run_and_other_options_are_refused_by_name(libra: Cli, found: Services) -> None:
    first = libra.json("run", "start", "good.jsonl", *GUARD, "--name", "nightly")
    before = ledger_rows(found)

    again = libra.json("run", "start", "good.jsonl", *GUARD, "--name", "nightly")
    other = libra("run", "start", "good.jsonl", *GUARD, "--name", "nightly", "--limit", "3")

    assert again == first
    assert other.returncode == 2
    assert "there is a run named nightly already, with limit None, not 3" in other.stderr
    assert ledger_rows(found) == before


def test_a_name_cannot_go_on_with_a_data_set_that_has_changed(libra: Cli) -> None:
    write(libra.folder / "moving.jsonl", RECORDS[:4])
    libra.json("run", "start", "moving.jsonl", *GUARD, "--name", "moving")

    write(libra.folder / "moving.jsonl", RECORDS[:3])
    fewer = libra("run", "start", "moving.jsonl", *GUARD, "--name", "moving")
    write(libra.folder / "moving.jsonl", [*RECORDS[:3], RECORDS[3] | {"response": "anders"}])
    changed = libra("run", "start", "moving.jsonl", *GUARD, "--name", "moving")

    assert (fewer.returncode, changed.returncode) == (3, 3)
    assert "holds 4 items, moving.jsonl 3" in fewer.stderr
    assert "'r3' is in run" in changed.stderr


# A run from outside


def test_submit_status_list_watch_and_report_agree_on_a_run(libra: Cli) -> None:
    submitted = libra.json("run", "submit", "good.jsonl", *GUARD, "--name", "outside")
    watched = libra.json("run", "watch", "outside")
    status = libra.json("run", "show", submitted["run"])
    listed = libra.json("run", "list")

    assert submitted["state"] != "open", "a quick fleet may have ended it already"
    assert watched["run_id"] == submitted["run"]
    assert (status["state"], status["settled"], status["pending"]) == ("complete", 20, 0)
    assert status in listed
    assert libra.json("run", "report", "outside") == watched
    assert "outside" in libra("run", "list").stdout


# Ctrl-C, on configured servers


@pytest.fixture
def remote(services: Services, fleet: Fleet, tmp_path: Path) -> Cli:
    """Commands on the test's own servers, where a fleet runs only if the test starts one."""
    services.engine  # noqa: B018 - migrated
    fleet.start_collector()
    return Cli(
        tmp_path, LIBRA_REDIS_URL=services.redis_url, LIBRA_DATABASE_URL=services.database_url, LIBRA_WINDOW_ITEMS="64"
    )


def settled(services: Services, name: str) -> int:
    status = find_run(services.engine, name)
    return status.counts.settled if status else 0


def assert_each_item_settled_once(services: Services, name: str, items: int) -> None:
    run = run_status(services.engine, name)
    with services.engine.connect() as connection:
        statement = sa.text("SELECT count(*), count(DISTINCT seq) FROM verdicts WHERE run_id = :run")
        assert tuple(connection.execute(statement, {"run": run.id}).one()) == (items, items)
    assert (run.state, run.counts.accepted, run.counts.scored) == ("complete", items, items)


def test_ctrl_c_amid_submission_says_how_to_resume_and_coming_back_completes_exactly_once(
    services: Services, fleet: Fleet, remote: Cli
) -> None:
    fleet.start_worker()
    write(remote.folder / "long.jsonl", [RECORDS[0] | {"id": f"l{number}"} for number in range(6_000)])
    command = ("run", "start", "long.jsonl", *GUARD, "--name", "night shift")

    stopped = remote.interrupt_when(lambda: settled(services, "night shift") > 0, *command)
    first = run_status(services.engine, "night shift")
    again = remote.interrupt_when(lambda: settled(services, "night shift") > first.counts.accepted, *command)
    second = run_status(services.engine, "night shift")
    resumed = remote("run", "resume", "night shift", "--json")

    for done in (stopped, again):
        assert (done.returncode, done.stdout) == (130, "")
        assert "Come back with: libra run resume 'night shift'" in done.stderr
        assert "Traceback" not in done.stderr
    assert f"going on with run night shift; {first.counts.accepted:,} items were submitted before" in again.stderr
    assert first.state == second.state == "open"
    assert 0 < first.counts.accepted < second.counts.accepted < 6_000
    assert resumed.returncode == 0
    assert_each_item_settled_once(services, "night shift", 6_000)


def test_ctrl_c_amid_judging_says_how_to_watch_and_the_fleet_goes_on(
    services: Services, fleet: Fleet, remote: Cli
) -> None:
    fleet.start_worker("--fake-item-ms", "10")
    different = [RECORDS[0] | {"id": f"l{number}", "response": f"text {number}"} for number in range(300)]
    write(remote.folder / "long.jsonl", different)  # equal ones that wait together run once

    def half_way() -> bool:
        run = find_run(services.engine, "judging")
        return run is not None and run.state == "sealed" and run.counts.settled > 0

    stopped = remote.interrupt_when(half_way, "run", "start", "long.jsonl", *GUARD, "--name", "judging")
    watched = remote("run", "watch", "judging")

    assert stopped.returncode == 130
    assert "the fleet goes on" in stopped.stderr
    assert "Come back with: libra run watch judging" in stopped.stderr
    assert watched.returncode == 0
    assert_each_item_settled_once(services, "judging", 300)


def test_a_cancelled_run_keeps_a_report_that_says_so(remote: Cli) -> None:
    write(remote.folder / "good.jsonl", RECORDS)
    submitted = remote("run", "submit", "good.jsonl", *GUARD, "--name", "unwanted")

    cancelled = remote("run", "cancel", "unwanted")
    watched = remote("run", "watch", "unwanted", "--json")
    twice = remote("run", "cancel", "unwanted")

    assert [done.returncode for done in (submitted, cancelled, watched, twice)] == [0, 0, 7, 2]
    assert "20 pending items settled as dead" in cancelled.stderr
    assert json.loads(watched.stdout)["state"] == "cancelled"
    assert json.loads(watched.stdout)["dead_reasons"] == {"cancelled": 20}
    assert json.loads(watched.stdout)["groups"] == []
    assert "no metrics: the run was cancelled" in remote("run", "watch", "unwanted").stdout


# A fleet of one's own


def test_a_local_fleet_takes_the_place_of_one_that_goes_away(services: Services, fleet: Fleet, tmp_path: Path) -> None:
    fleet.start_collector()
    worker = fleet.start_worker()
    orphans = children(worker)

    with LiveClient(services, guard="fake") as client, LocalFleet(services, "fake"):
        worker.kill()
        worker.wait()
        verdict = client.judge("文本", timeout_s=30)

    assert verdict.outcome is Outcome.SCORED
    assert len(orphans) == 3
    assert wait_until(lambda: not any(orphan.is_running() for orphan in orphans), timeout_s=30)


def test_a_local_fleet_that_cannot_load_its_guard_says_why(libra: Cli) -> None:
    done = libra("judge", "文本", "--guard", "mine=/no/such/folder", "--devices", "cpu")

    assert done.returncode == 5
    assert "the worker for mine ended by itself" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]


# The live lane


def judged(found: Services, text: str, *, cache: bool = True, question: str = "") -> Verdict:
    with LiveClient(found, guard="fake", cache=cache) as client:
        return client.judge(text, question=question, timeout_s=30)


def test_submitted_items_have_their_verdicts_later_in_the_order_given(found: Services) -> None:
    batch = [
        Item(id="long", response="[[fake:unsafe]] " + "长" * 50),
        Item(id="short", response="[[fake:safe]]"),
    ]

    with LiveClient(found, guard="fake", tenant="tickets") as client:
        refs = client.submit(batch)

        assert wait_until(lambda: all(client.verdict(ref) for ref in refs), timeout_s=30)
        assert [verdict and verdict.label for verdict in map(client.verdict, refs)] == ["unsafe", "safe"]
        with pytest.raises(DataError, match="already"):
            client.submit(batch[:1])


def test_the_client_waits_for_the_settled_verdict(found: Services) -> None:
    verdict = judged(found, "[[fake:unsafe]]", question="问题")

    assert (verdict.outcome, verdict.label) == (Outcome.SCORED, "unsafe")


def test_what_was_judged_before_is_taken_from_the_cache_where_asked_and_marked(libra: Cli, found: Services) -> None:
    bench = ("run", "start", "good.jsonl", *GUARD, "--no-local", "--json")
    fresh = RunReport.model_validate(libra.json(*bench, "--cache"), strict=False)
    again = RunReport.model_validate(libra.json(*bench, "--cache"), strict=False)
    plain = libra.json(*bench)
    said = libra("run", "report", again.name)
    proof = libra.json("run", "verify", again.name)
    text = RECORDS[0]["response"]

    assert (fresh.cached, again.cached, again.groups) == (0, 20, fresh.groups)
    assert "cached" not in plain
    assert "20 from the cache" in said.stdout
    assert (proof["sound"], proof["cached_items"]) == (True, 20)
    assert judged(found, text).cached
    assert not judged(found, text, cache=False).cached


def test_a_repeated_judgement_is_never_a_copy(found: Services) -> None:
    spec = RunSpec(guard="fake", source="repeated", cache=True, repeat=2)
    run_id = intake.create_run(found.engine, spec)
    submit(found, run_id, spec, [Item(id=str(number), response="[[fake:safe]] 一再") for number in range(3)])
    seal(found, run_id)

    assert wait_until(lambda: run_status(found.engine, run_id).state.ended, timeout_s=30)
    assert cached_count(found.engine, run_id) == 0


def test_judge_prints_one_verdict_and_exits_with_7_where_there_is_none(libra: Cli) -> None:
    said = libra("judge", "[[fake:unsafe]] 你好", *GUARD)
    piped = libra.json("judge", "-", *GUARD, typed="[[fake:safe]] 你好")
    dead = libra("judge", f"[[fake:crash]] {SECRET}", *GUARD, "--json")

    assert (said.returncode, said.stdout.split()[0]) == (0, "unsafe")
    assert piped["label"] == "safe"
    assert dead.returncode == 7
    assert json.loads(dead.stdout)["outcome"] == "dead"


# What nobody can read


def envelope(arguments: object, *, task: str = JUDGE, **changes: object) -> bytes:
    """A message as Celery would have put it on the live queue."""
    body = base64.b64encode(json.dumps(arguments).encode()).decode()
    message = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/x-libra+json",
        "headers": {"task": task, "id": "stranger", "lang": "py", "argsrepr": "-", "kwargsrepr": "-"},
        "properties": {
            "correlation_id": "stranger",
            "delivery_tag": "stranger",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue_of("fake", Lane.LIVE)},
        },
    }
    return json.dumps({**message, **changes}).encode()


def task(text: str) -> list[object]:
    return [[text], {}, {}]


STRANGERS = {
    "plain text": (f"garbage {SECRET}".encode(), "not a message"),
    "bytes": (b"\xff\xfe\x00", "not a message"),
    "JSON that is no message": (b"[1]", "not a message"),
    "no properties": (b"{}", "not a message"),
    "a body that is not JSON": (envelope(task("x"), body="!"), "malformed task message"),
    "a body that is no text": (envelope(task("x"), body=7), "not a message"),
    "headers of another kind": (envelope(task("x"), headers=[]), "malformed task message"),
    "no task id": (envelope(task("x"), headers={"task": JUDGE}), "malformed task message"),
    "an unknown task": (envelope(task("x"), task="somebody.elses"), "unknown task"),
    "two arguments": (envelope([["a", "b"], {}, {}]), "malformed task message"),
    "no arguments at all": (envelope({"a": 1}), "malformed task message"),
    "no chunk": (envelope(task(SECRET)), "not a JudgeChunk: body"),
    "a newer chunk": (envelope(task(json.dumps({"version": 99}))), "message version 99, this reader knows"),
    "a chunk that lacks fields": (envelope(task(json.dumps({"version": 1}))), "run_id: Field required"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_message_that_cannot_be_read_is_parked_and_the_worker_judges_on(found: Services, kind: str) -> None:
    raw, reason = STRANGERS[kind]
    workers = {process.pid for process in found.coordination.presence.announced()}
    parked = len(found.coordination.dead_letters.newest_first())
    queue = f"{found.settings.namespace}:{queue_of('fake', Lane.LIVE)}"

    with redis.Redis.from_url(found.redis_url) as client:
        client.lpush(queue, raw)

    assert wait_until(lambda: len(found.coordination.dead_letters.newest_first()) > parked, timeout_s=30)
    newest = found.coordination.dead_letters.newest_first()[0]
    assert newest["queue"] == queue_of("fake", Lane.LIVE)
    assert reason in newest["reason"]
    assert judged(found, "文本").outcome is Outcome.SCORED
    assert {process.pid for process in found.coordination.presence.announced()} == workers
    assert not deaths(found), "a consumer must not die of a message"


def deaths(found: Services) -> list[str]:
    return [line for line in logs(found) if "consumer_died" in line or "Unrecoverable" in line]


def logs(found: Services) -> list[str]:
    """Every line of every log, the servers' own included."""
    folder = found.settings.state_dir / "logs"
    return [line for path in folder.iterdir() for line in path.read_text(errors="replace").splitlines()]


def test_a_live_items_trace_goes_from_producer_to_verdict_and_its_batch_is_linked(libra: Cli, traces: Receiver) -> None:
    text = f"[[fake:unsafe]] 一条要追踪的文本 {SECRET}"
    done = libra.process("judge", text, *GUARD, LIBRA_OTLP_ENDPOINT=f"http://127.0.0.1:{traces.port}")
    assert done.returncode == 0, done.stderr

    def of(service: str) -> dict[str, Seen]:
        """The process's spans of the one trace that `libra judge` began."""
        begun = [seen.span.trace_id for seen in spans_in(traces) if seen.service == "libra-judge"]
        return {s.name: s for s in spans_in(traces) if s.service == service and s.span.trace_id in begun}

    assert wait_until(lambda: bool(of("libra-collector")) and len(of("libra-consumer")) == 5, timeout_s=20)
    (submit,), consumer, (settle,) = of("libra-judge").values(), of("libra-consumer"), of("libra-collector").values()
    judge, device = consumer["libra.judge"], consumer["libra.device"]
    print(tree([submit, *consumer.values(), settle]))

    assert (submit.name, submit.span.parent_span_id) == ("libra.submit", b"")
    assert {seen.span.parent_span_id for seen in (consumer["libra.chunk.wait"], judge)} == {submit.span.span_id}
    within = [consumer[name] for name in ("libra.render", "libra.device", "libra.publish")]
    assert {seen.span.parent_span_id for seen in within} == {judge.span.span_id}
    assert (settle.name, settle.span.parent_span_id) == ("libra.settle", consumer["libra.publish"].span.span_id)
    assert judge.about == {name: submit.about[name] for name in judge.about}
    assert judge.about.keys() == {"libra.guard", "libra.lane", "libra.run_id", "libra.items"}

    def batches() -> list[Seen]:
        linked = [seen for seen in spans_in(traces) if seen.service == "libra-device"]
        return [seen for seen in linked if device.span.span_id in {link.span_id for link in seen.span.links}]

    assert wait_until(lambda: bool(batches()), timeout_s=20)
    (batch,) = batches()
    print(tree([batch]))
    assert (batch.name, batch.span.parent_span_id) == ("libra.device.batch", b"")
    assert batch.about["libra.tokens"] == device.about["libra.tokens"]
    assert all(text[-30:].encode() not in request.body for request in traces.received)
    assert all(SECRET.encode() not in request.body for request in traces.received)


def test_no_log_holds_user_text(libra: Cli, found: Services) -> None:
    libra.json("run", "start", "good.jsonl", *GUARD)
    libra.json("judge", f"[[fake:safe]] {SECRET}", *GUARD)
    with redis.Redis.from_url(found.redis_url) as client:
        for raw, _ in (STRANGERS["plain text"], STRANGERS["no chunk"]):
            parked = len(found.coordination.dead_letters.newest_first())
            client.lpush(f"{found.settings.namespace}:{queue_of('fake', Lane.LIVE)}", raw)
            assert wait_until(
                lambda before=parked: len(found.coordination.dead_letters.newest_first()) > before, timeout_s=30
            )

    escaped = json.dumps(SECRET)[1:-1]
    encoded = base64.b64encode(SECRET.encode()).decode()[:24]
    leaks = [line for line in logs(found) if any(text in line for text in (SECRET, escaped, encoded))]

    assert any("message_parked" in line for line in logs(found))
    assert leaks == []
