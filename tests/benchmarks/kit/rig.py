"""A fleet of real processes on embedded servers in a temporary folder, and runs through it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from infra.ledger import intake
from infra.process import wait_until
from infra.servers.services import Services, services
from infra.settings import Settings
from libra_fleet.machine.fleet import LocalFleet
from producer.intake.submit import seal, submit
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec

GUARD: Final = "fake"
_READY_S: Final = 60
_WARM_UP_ITEMS: Final = 2_048
_TEXT: Final = "这是一段用来测量吞吐量的文字，讲的是今天的天气、晚饭的菜和明天要走的路。"


@dataclass(frozen=True)
class RunTimes:
    """A run through the fleet. Moments in epoch seconds by this machine's clock, which is the ledger's as well."""

    run_id: str
    items: int
    started_at: float
    submitted_s: float
    settled_at: float
    ended_at: float
    validate_cpu_s: float

    @property
    def items_per_s(self) -> float:
        """From the start of the submission to the last item settled."""
        return self.items / (self.settled_at - self.started_at)


class Rig:
    """The servers of one benchmark and a folder for its files."""

    def __init__(self, found: Services, folder: Path) -> None:
        self.services = found
        self.folder = folder

    @contextmanager
    def fleet(self, *worker_options: str, guard: str = GUARD, warm_up_items: int = _WARM_UP_ITEMS) -> Iterator[None]:
        """A worker of a guard and a collector, warm: they have judged so many items.

        A guard's own checkpoint is a worker option: `--checkpoint`, FOLDER.
        """
        with LocalFleet(self.services, guard, worker_options=["--devices", "cpu", *worker_options]):
            self.wait_for("collector")
            self.judge(write_items(self.folder / "warm-up.jsonl", warm_up_items, 100, prefix="warm"), guard=guard)
            self.analyze()
            try:
                yield
            finally:
                self._say_trouble()

    def analyze(self) -> None:
        """Let Postgres learn what the ledger holds now, so that the next run is one it knows nothing of: the hard case,
        and no accident of when autovacuum came by."""
        with self.services.engine.begin() as connection:
            connection.execute(sa.text("ANALYZE"))

    def scalar(self, query: str) -> Any:
        """One value from the ledger."""
        with self.services.engine.connect() as connection:
            return connection.scalar(sa.text(query))

    def _say_trouble(self) -> None:
        """Show what the fleet's processes complained of: a figure from a fleet in trouble is none."""
        for log in sorted((self.services.settings.state_dir / "logs").glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if '"level": "info"' not in line and log.stem not in {"postgres", "valkey", "keeper"}:
                    print(f"{log.name}: {line}", file=sys.stderr)

    def wait_for(self, kind: str) -> None:
        """Until a worker or collector says that it is ready."""
        presence = self.services.coordination.presence
        if not wait_until(lambda: any(one.kind == kind for one in presence.announced()), timeout_s=_READY_S):
            raise TimeoutError(f"no {kind} after {_READY_S} s")

    def judge(self, source: Path, *, guard: str = GUARD) -> RunTimes:
        """Take a file through the whole fleet, with a producer in a process of its own."""
        with self.producer(source, guard=guard) as producer:
            return producer.finish()

    @contextmanager
    def producer(self, source: Path, *, guard: str = GUARD) -> Iterator[Producer]:
        """A producer process that has validated the file and submits it when told to."""
        command = [sys.executable, "-m", "tests.benchmarks.kit.producing", str(source), guard]
        environment = self.services.environment()
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Producer(process, self.services.engine)
            finally:
                if process.stdin:
                    process.stdin.close()


class Producer:
    """The parent's end of `tests.benchmarks.kit.producing`."""

    def __init__(self, process: subprocess.Popen[str], engine: sa.Engine) -> None:
        self.pid = process.pid
        self._process = process
        self._engine = engine
        self._ready = self._hear("ready")

    def start(self) -> None:
        """Begin the submission."""
        if self._process.stdin is None:
            raise RuntimeError("the producer has no standard input")
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def abandon(self) -> None:
        """End the producer where it is; what it has submitted stays."""
        self._process.kill()

    def finish(self, *, started: bool = False) -> RunTimes:
        """Submit, unless that has been started, and wait for the report."""
        if not started:
            self.start()
        submitted, done = self._hear("submitted"), self._hear("done")
        row = run_row(self._engine, done["run"])
        return RunTimes(
            run_id=done["run"],
            items=row["settled"],
            started_at=done["started_at"],
            submitted_s=submitted["seconds"],
            settled_at=row["settled_at"].timestamp(),
            ended_at=done["ended_at"],
            validate_cpu_s=self._ready["validate_cpu_s"],
        )

    def _hear(self, word: str) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"the producer ended before it said {word!r}")
        heard: dict[str, Any] = json.loads(line)
        if heard["word"] != word:
            raise RuntimeError(f"the producer said {heard['word']!r}, not {word!r}")
        return heard


@contextmanager
def rig(**settings: Any) -> Iterator[Rig]:
    """Embedded servers in a temporary folder, whatever servers are configured; other settings by name."""
    with tempfile.TemporaryDirectory(prefix="libra-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as nobody where we are root
        with services(Settings(state_dir=folder / "state", redis_url=None, database_url=None, **settings)) as found:
            found.engine  # noqa: B018 - the ledger's tables, before anything is started that needs them
            yield Rig(found, folder)
            found.engine.dispose()


def write_items(path: Path, count: int, text_bytes: int, *, prefix: str = "item") -> Path:
    """A JSONL file of labelled items, each text different and of so many UTF-8 bytes."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = {
                "id": f"{prefix}-{number}",
                "response": text_of(number, text_bytes),
                "label": "不安全" if number % 2 else "安全",
                "source": "Real Data",
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def text_of(number: int, text_bytes: int) -> str:
    """A text of exactly so many UTF-8 bytes (at least 10), which begins with the number."""
    head = f"{number:09d} "
    left = text_bytes - len(head)
    body = (_TEXT * (left // len(_TEXT) // 3 + 1))[: left // 3]
    return head + body + "." * (left - len(body.encode()))


def submit_items(found: Services, items: Sequence[Item], *, lane: Lane = Lane.BULK) -> str:
    """Submit items from this process; returns the run's id."""
    spec = RunSpec(guard=GUARD, lane=lane, source="benchmark")
    run_id = intake.create_run(found.engine, spec)
    submit(found, run_id, spec, items)
    seal(found, run_id)
    return run_id


def run_row(engine: sa.Engine, run_id: str) -> dict[str, Any]:
    """The run's row in the ledger."""
    with engine.connect() as connection:
        statement = sa.text("SELECT * FROM runs WHERE id = :run_id")
        return dict(connection.execute(statement, {"run_id": run_id}).mappings().one())
