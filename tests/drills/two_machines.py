"""`python -m tests.drills.two_machines`: three machines on one, as network namespaces, and a cable that is pulled.

    servers     Valkey and Postgres over TCP with passwords, the producer
    machine-a   a collector and a worker, joined to the servers by one cable (a veth pair)
    machine-b   the same and a gateway, joined to the servers by another cable; its collector reconciles

Nothing but the two URLs is shared: every machine has its own state folder and host name. A run is judged by both; in
the middle of a second one machine-b's cable is pulled. Both runs must end whole and verify. Needs root, `ip` and
`unshare` (Debian: iproute2, util-linux); all addresses lie within the namespaces and vanish with them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import redis
import sqlalchemy as sa

from infra.coordination.store import CoordinationStore
from infra.ledger.engine import open_ledger
from infra.ledger.keys import create_key
from infra.process import module_path, wait_until
from infra.servers.places import Binaries, find_binaries, postgres_user
from infra.settings import child_environment
from schemas.access import Role
from schemas.fleet import ready
from tests.support.processes import stop

SERVERS: Final = "servers"
MACHINES: Final = {"machine-a": "10.77.1", "machine-b": "10.77.2"}
"""Each machine's name and the network of its cable: the servers are .1 on it, the machine .2."""
WAIT_S: Final = 90.0
LEASE_S: Final = 6.0
CALLS: Final = 200


class Place:
    """A namespace with a host name and a state folder of its own."""

    def __init__(self, name: str, namespace: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.namespace = namespace
        self._folder = folder / name
        self._folder.mkdir()
        self._environment = {**environment, "LIBRA_STATE_DIR": str(self._folder), "PYTHONPATH": module_path()}

    def command(self, *command: str) -> list[str]:
        """A command as it must be called to run there."""
        renamed = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", renamed, "-", *command]

    def libra(self, *arguments: str) -> list[str]:
        """A libra command as it must be called to run there."""
        return self.command(sys.executable, "-m", "libra_fleet.cli", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a libra command there; it dies with us."""
        log = self._folder / f"{arguments[0]}.log"
        with log.open("wb") as output:
            return subprocess.Popen(
                self.libra(*arguments),
                env=child_environment(**self._environment, LIBRA_PARENT_PID=str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def start_python(self, program: str) -> subprocess.Popen[bytes]:
        """Start a Python program there, and wait until it has said something."""
        process = subprocess.Popen(
            self.command(sys.executable, "-c", program),
            env=child_environment(**self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline(), f"a program on {self.name} ended at once"
        return process

    def run_python(self, program: str, *arguments: str) -> None:
        """Run a Python program there, to its end."""
        command = self.command(sys.executable, "-c", program, *arguments)
        subprocess.run(command, env=child_environment(**self._environment), stdin=subprocess.DEVNULL, check=True)

    def run(self, *arguments: str) -> str:
        """Run a libra command there and show it; what it printed."""
        print(f"\n{self.name}$ libra {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            self.libra(*arguments),
            env=child_environment(**self._environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        print((done.stdout or done.stderr).rstrip(), flush=True)
        if done.returncode:
            raise SystemExit(f"libra {arguments[0]} on {self.name} failed ({done.returncode}): {done.stderr}")
        return done.stdout


def ip(*arguments: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def cabled() -> Iterator[dict[str, str]]:
    """The namespaces and the cables between them; yields the namespaces' names by place."""
    tag = f"lf{os.getpid()}"
    names = {place: f"{tag}-{place}" for place in (SERVERS, *MACHINES)}
    with ExitStack() as undo:
        for name in names.values():
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, (machine, network) in enumerate(MACHINES.items()):
            ours, theirs = f"{tag}s{number}", f"{tag}m{number}"
            ip("link", "add", ours, "netns", names[SERVERS], "type", "veth", "peer", theirs, "netns", names[machine])
            for name, end, address in ((names[SERVERS], ours, 1), (names[machine], theirs, 2)):
                ip("-n", name, "address", "add", f"{network}.{address}/30", "dev", end)
                ip("-n", name, "link", "set", end, "up")
        yield names


def pull_cable(namespace: str) -> None:
    """Take every link of a machine down but its own loopback."""
    listed = subprocess.run(["ip", "-n", namespace, "-o", "link"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        name = line.split(":")[1].strip().partition("@")[0]
        if name != "lo":
            ip("-n", namespace, "link", "set", name, "down")


def start_valkey(namespace: str, binaries: Binaries, folder: Path, password: str) -> subprocess.Popen[bytes]:
    """A broker that listens on both cables and asks for a password, which no process list shows."""
    conf = folder / "valkey.conf"
    bind = " ".join(f"{network}.1" for network in MACHINES.values())
    socket = folder / "valkey.sock"
    conf.write_text(
        f"bind {bind}\nport 6379\nunixsocket {socket}\nrequirepass {password}\nappendonly yes\ndir {folder}\n"
        'maxmemory-policy noeviction\nsave ""\n'
    )
    conf.chmod(0o600)
    return _start(namespace, [str(binaries.valkey_server), str(conf)], folder / "valkey.log")


def start_postgres(namespace: str, binaries: Binaries, folder: Path, password: str) -> subprocess.Popen[bytes]:
    """A database that listens on both cables and knows who comes by SCRAM alone."""
    user = postgres_user()
    data, secret = folder / "data", folder / "password"
    secret.write_text(password)
    if user:
        for path in (folder, secret):
            os.chown(path, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
    initdb = [str(binaries.initdb), "-D", str(data), "-U", "libra", "--auth=scram-sha-256", f"--pwfile={secret}"]
    subprocess.run([*as_user, *initdb, "--encoding=UTF8", "--locale=C"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.writelines(f"host all all {network}.0/30 scram-sha-256\n" for network in MACHINES.values())
    addresses = ",".join(f"{network}.1" for network in MACHINES.values())
    options = {"listen_addresses": addresses, "unix_socket_directories": str(folder), "port": "5432"}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return _start(namespace, [*as_user, str(binaries.postgres), "-D", str(data), *settings], folder / "postgres.log")


def _start(namespace: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
        )


class Fleet:
    """The three places, and the servers as this script itself sees them, by socket files."""

    def __init__(self, folder: Path, names: dict[str, str], environment: dict[str, str], password: str) -> None:
        self.names = names
        self.broker = redis.Redis(
            unix_socket_path=str(folder / "valkey.sock"), password=password, decode_responses=True
        )
        self._database_url = f"postgresql://libra:{password}@/postgres?host={folder / 'postgres'}"
        self.places = {}
        for place in (SERVERS, *MACHINES):
            network = MACHINES.get(place, MACHINES["machine-a"])
            urls = {
                "LIBRA_REDIS_URL": f"redis://:{password}@{network}.1:6379/0",
                "LIBRA_DATABASE_URL": f"postgresql://libra:{password}@{network}.1:5432/postgres",
            }
            self.places[place] = Place(place, names[place], folder, {**environment, **urls})

    def ready(self) -> int:
        """How many processes have announced that they are ready."""
        coordination = CoordinationStore(self.broker, namespace="libra", remember_s=0)
        return sum(process.state == "ready" for process in coordination.presence.announced())

    def has(self, kind: str, machine: str) -> bool:
        """Whether a machine's process of this kind has announced that it is ready."""
        coordination = CoordinationStore(self.broker, namespace="libra", remember_s=0)
        return any(f"-{machine}-" in one.id for one in ready(coordination.presence.announced(), kind))

    def check_bound(self) -> None:
        """See that nobody was held up for more than a lease and ten seconds, and that every call has its verdict.

        Raises:
            SystemExit: that is not so.
        """
        gaps = sa.text(
            "SELECT max(gap) FROM (SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY at)) AS gap FROM "
            "(SELECT v.settled_at AS at FROM verdicts v JOIN runs r ON r.id = v.run_id WHERE r.name <> 'together') AS v"
            ") AS times"
        )
        calls = sa.text(
            "SELECT count(DISTINCT s.custom_id) FROM submissions s JOIN verdicts USING (run_id, seq) "
            "WHERE s.tenant = 'unplugged'"
        )
        with self.ledger().connect() as connection:
            assert wait_until(lambda: connection.scalar(calls) == CALLS, timeout_s=WAIT_S), "calls without a verdict"
            stall_s = float(connection.scalar(gaps))
        print(f"{CALLS} acknowledged calls have a verdict; nothing settled for {stall_s:.1f} s at most")
        if stall_s > LEASE_S + 10:
            raise SystemExit(f"nothing settled for {stall_s:.1f} s: more than the lease of {LEASE_S:g} s and 10 s")

    def ledger(self) -> sa.Engine:
        """The ledger, reached by its socket file."""
        return open_ledger(self._database_url, wait_s=30)

    def judged_by(self, run: str) -> dict[str, int]:
        """Items that each machine judged."""
        statement = sa.text(
            "SELECT regexp_replace(worker, '-[0-9]+-[0-9]+$', '') AS machine, sum(c.settled)::int AS items "
            "FROM chunks c JOIN runs r ON r.id = c.run_id WHERE r.name = :run AND worker IS NOT NULL "
            "GROUP BY 1 ORDER BY 1"
        )
        with self.ledger().connect() as connection:
            return {row.machine: row.items for row in connection.execute(statement, {"run": run})}


@contextmanager
def fleet() -> Iterator[Fleet]:
    """Servers and a collector in one namespace, ready; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="libra-two-machines-"))
    folder.chmod(0o755)  # Postgres, which runs as another user, must be able to walk through
    password = secrets.token_hex(16)
    environment = {"LIBRA_BULK_LEASE_S": f"{LEASE_S:g}", "LIBRA_RECONCILE_EVERY_S": "1", "LIBRA_LOG_FORMAT": "json"}
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        names = undo.enter_context(cabled())
        binaries = find_binaries()
        (folder / "postgres").mkdir(mode=0o700)
        for server, signal_number in (
            (start_valkey(names[SERVERS], binaries, folder, password), signal.SIGTERM),
            (start_postgres(names[SERVERS], binaries, folder / "postgres", password), signal.SIGINT),
        ):
            undo.callback(stop, server, grace_s=20, signal_number=signal_number)
        found = Fleet(folder, names, environment, password)
        assert wait_until(lambda: _answers(found.broker), timeout_s=WAIT_S), (folder / "valkey.log").read_text()
        found.ledger().dispose()
        yield found


def _answers(broker: redis.Redis) -> bool:
    try:
        return bool(broker.ping())
    except redis.RedisError:
        return False


def judge_apart(found: Fleet, guard: str, items: int, folder: Path) -> None:
    """Two runs over both machines; in the second one a cable is pulled.

    Machine-b has the collector that reconciles, a gateway that has just acknowledged items, and a client that holds
    rows of the run in a transaction: no server hears of the end of any of them.

    Raises:
        SystemExit: a command failed, `libra run verify` among them, or the others were held up for too long.
    """
    with ExitStack() as undo:
        servers, machine_b = found.places[SERVERS], found.places["machine-b"]
        servers.run("migrate")
        for machine in reversed(MACHINES):  # the collector that comes first reconciles
            undo.callback(stop, found.places[machine].start("collector"), grace_s=15)
            assert wait_until(lambda machine=machine: found.has("collector", machine), timeout_s=WAIT_S), machine  # type: ignore[misc]
        for machine in MACHINES:
            worker = found.places[machine].start("worker", "--guard", guard, "--devices", "cpu", *_slow(guard))
            undo.callback(stop, worker, grace_s=15)
        undo.callback(stop, machine_b.start("gateway", "--guard", guard, "--no-local"), grace_s=15)
        assert wait_until(lambda: found.ready() == 2 * len(MACHINES) + 1, timeout_s=WAIT_S), "they do not all come up"
        source, longer = folder / "items.jsonl", folder / "longer.jsonl"
        for path, count in ((source, items), (longer, _LONGER * items)):
            path.write_text("".join(_record(number) for number in range(count)), encoding="utf-8")
        options = ("--guard", guard)
        servers.run("status")
        found.places["machine-a"].run("doctor", "--guard", guard, "--devices", "cpu")
        servers.run("bench", "run", str(source), *options, "--no-local", "--name", "together")
        print(f"judged by: {found.judged_by('together')}")
        servers.run("bench", "submit", str(longer), *options, "--name", "unplugged")
        assert wait_until(lambda: len(found.judged_by("unplugged")) == len(MACHINES), timeout_s=WAIT_S)
        key = create_key(found.ledger(), tenant="unplugged", role=Role.SERVICE)[1]
        undo.callback(stop, machine_b.start_python(_HOLD_ROWS), grace_s=1)
        machine_b.run_python(_CALL_GATEWAY, key)
        print("\n… the cable of machine-b is pulled")
        pulled_at = time.monotonic()
        pull_cable(found.names["machine-b"])
        servers.run("bench", "watch", "unplugged", "--no-local")
        print(
            f"judged by: {found.judged_by('unplugged')}; it ended {time.monotonic() - pulled_at:.1f} s after the pull"
        )
        found.check_bound()
        for run in ("together", "unplugged"):
            servers.run("verify", run)


_LONGER: Final = 3
"""So that the run lasts until the cable is pulled, and beyond."""

_HOLD_ROWS: Final = """
import os, time, sqlalchemy as sa
from infra.settings import load_settings
from infra.servers.services import Services
settings = load_settings()
found = Services(settings, settings.require_redis_url(), settings.require_database_url(), embedded=False)
connection = found.engine.connect()
connection.execute(sa.text("SELECT 1 FROM runs WHERE name = 'unplugged' FOR UPDATE"))
connection.execute(sa.text("SELECT 1 FROM chunks c JOIN runs r ON r.id = c.run_id WHERE r.name = 'unplugged' "
                           "AND c.settled < c.size ORDER BY c.chunk_no LIMIT 8 FOR UPDATE OF c SKIP LOCKED"))
print("holds rows", flush=True)
time.sleep(600)
"""
"""A client that stands amid a settlement."""

_CALL_GATEWAY: Final = """
import json, sys, urllib.request
items = [{"text": f"text {number}", "custom_id": f"call-{number}"} for number in range(200)]
headers = {"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8000/v1/items", json.dumps({"items": items}).encode(), headers)
assert urllib.request.urlopen(request, timeout=30).status == 202
"""


def _slow(guard: str) -> tuple[str, ...]:
    return ("--fake-item-ms", "2") if guard == "fake" else ()


def _record(number: int) -> str:
    label = "不安全" if number % 2 else "安全"
    record = {"id": f"item-{number}", "question": "", "response": f"第{number}条文本", "label": label}
    return json.dumps({**record, "source": "Real Data"}, ensure_ascii=False) + "\n"


def main() -> int:
    """Run the drill."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.two_machines", description=__doc__)
    parser.add_argument("--guard", default="fake", help="fake (2 ms an item) or libra-tiny")
    parser.add_argument("--items", type=int, default=6_000)
    options = parser.parse_args()
    with fleet() as found, tempfile.TemporaryDirectory() as folder:
        judge_apart(found, options.guard, options.items, Path(folder))
    print("\nnothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
