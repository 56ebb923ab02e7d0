"""Faults of processes: killed, or stopped for longer than every lease.

A stopped process is what a frozen cgroup, a debugger and a hung virtual machine leave: its kernel still answers for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libra_fleet.drill.ground import Ground, Strike, described

if TYPE_CHECKING:
    import psutil


def kill_device(ground: Ground) -> Strike | None:
    """Kill -9 a device process."""
    return _kill(ground.device())


def kill_live_consumer(ground: Ground) -> Strike | None:
    """Kill -9 the consumer of the live lane."""
    return _kill(ground.consumer("live"))


def kill_bulk_consumer(ground: Ground) -> Strike | None:
    """Kill -9 the consumer of the bulk lane."""
    return _kill(ground.consumer("bulk"))


def kill_worker(ground: Ground) -> Strike | None:
    """Kill -9 a supervisor, and so its whole worker."""
    return _kill(ground.one("worker"))


def kill_collector(ground: Ground) -> Strike | None:
    """Kill -9 a collector, and so perhaps the active reconciler."""
    return _kill(ground.one("collector"))


def kill_producer(ground: Ground) -> Strike | None:
    """Kill -9 the producer."""
    return _kill(ground.one("producer"))


def kill_gateway(ground: Ground) -> Strike | None:
    """Kill -9 the gateway."""
    return _kill(ground.one("gateway"))


def kill_finalizer(ground: Ground) -> Strike | None:
    """Kill -9 the process that computes reports."""
    return _kill(ground.finalizer())


def kill_machine(ground: Ground) -> Strike | None:
    """Kill -9 everything of one machine: its collector, its worker and all children."""
    machine = ground.machine()
    for process in machine:
        if process.is_running():
            process.kill()
    return Strike(described(machine)) if machine else None


def stop_consumer(ground: Ground) -> Strike | None:
    """SIGSTOP the bulk consumer of a worker."""
    return _stop(ground, ground.consumer("bulk"))


def stop_device(ground: Ground) -> Strike | None:
    """SIGSTOP a device process."""
    return _stop(ground, ground.device())


def stop_collector(ground: Ground) -> Strike | None:
    """SIGSTOP a collector, and so perhaps the active reconciler."""
    return _stop(ground, ground.one("collector"))


def stop_gateway(ground: Ground) -> Strike | None:
    """SIGSTOP the gateway."""
    return _stop(ground, ground.one("gateway"))


def stop_producer(ground: Ground) -> Strike | None:
    """SIGSTOP the producer."""
    return _stop(ground, ground.one("producer"))


def stop_finalizer(ground: Ground) -> Strike | None:
    """SIGSTOP the process that computes reports."""
    return _stop(ground, ground.finalizer())


def stop_machine(ground: Ground) -> Strike | None:
    """SIGSTOP everything of one machine."""
    return ground.stopped(ground.machine())


def _kill(process: psutil.Process | None) -> Strike | None:
    if process is None:
        return None
    hit = described([process])
    process.kill()
    return Strike(hit)


def _stop(ground: Ground, process: psutil.Process | None) -> Strike | None:
    return ground.stopped([] if process is None else [process])
