"""Children that die with their parent, and stops that end."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from infra.process import deferred_interrupt, module_path, wait_until
from infra.settings import child_environment
from tests.support.processes import stop

CHILD = """
import sys, signal
from infra.process import die_with_parent
die_with_parent({arguments})
print("tied", flush=True)
sys.stdin.read()
signal.pause()
"""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def python(*arguments: str) -> subprocess.Popen[bytes]:
    environment = child_environment(PYTHONPATH=module_path())
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_dies_when_its_parent_is_killed() -> None:
    """SIGKILL gives the parent no chance to tell its child."""
    with python("-c", PARENT, CHILD.format(arguments="")) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    assert wait_until(lambda: is_gone(child), timeout_s=5)


def test_the_watch_alone_notices_a_dead_parent() -> None:
    """Where the kernel offers no tie, a thread looks every second."""
    without_kernel = "import infra.process\ninfra.process._LIBC = None\n" + CHILD.format(arguments="")
    with python("-c", PARENT, without_kernel) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    assert wait_until(lambda: is_gone(child), timeout_s=5)


def test_a_parent_that_died_before_the_call_is_noticed() -> None:
    """A parent's own word is believed over getppid, which has moved on to init by then."""
    not_its_parent = 2**22 - 1
    with python("-c", CHILD.format(arguments=f"signal.SIGTERM, parent_pid={not_its_parent}")) as child:
        assert child.wait(10) == -signal.SIGTERM


def test_a_foreign_program_is_tied_before_it_starts() -> None:
    """`sleep` knows nothing of us and dies with its parent all the same."""
    program = (
        "import subprocess, signal; from infra.process import tied_to_caller;"
        "p = subprocess.Popen(['sleep', '600'], preexec_fn=tied_to_caller(signal.SIGTERM));"
        "print(p.pid, flush=True); p.wait()"
    )
    with python("-c", program) as parent:
        child = int(parent.stdout.readline())
        assert not is_gone(child)
        parent.kill()
    assert wait_until(lambda: is_gone(child), timeout_s=5)


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    """A stop always ends."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with python("-c", deaf) as child:
        child.stdout.readline()
        assert stop(child, grace_s=0.1) == -signal.SIGKILL


def test_a_process_that_has_ended_keeps_its_exit_code() -> None:
    """No signal goes to a process id that may be somebody else's."""
    with python("-c", "raise SystemExit(3)") as child:
        child.wait()
        assert stop(child, grace_s=0) == 3


def test_stop_sends_the_signal_it_is_told() -> None:
    """Postgres' fast shutdown is SIGINT."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print(flush=True); signal.pause()"
    with python("-c", program) as child:
        child.stdout.readline()
        assert stop(child, grace_s=10, signal_number=signal.SIGINT) == -signal.SIGINT


def test_waiting_gives_up_when_the_condition_never_holds() -> None:
    """A wait is bounded, and looks at least once."""
    assert not wait_until(lambda: False, timeout_s=0)
    assert wait_until(lambda: True, timeout_s=0)


def test_a_deferred_ctrl_c_takes_effect_where_it_is_asked_for() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        reached = True
        check()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was deferred as well")


def test_what_is_loaded_is_left_out_of_collections() -> None:
    script = (
        "import gc; from infra.process import leave_out_of_collections as leave; leave(); print(gc.get_freeze_count())"
    )
    frozen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(frozen.stdout) > 1_000
