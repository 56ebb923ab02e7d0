"""A host's own process is found among the announced ones, and no other."""

import pytest

from infra.coordination.presence import is_ready
from schemas.fleet import Announcement, ProcessKind

ANNOUNCED = [
    Announcement(id="gpu-1-4711-0", kind="worker", guard="fake", state="ready"),
    Announcement(id="gpu-2-4711-0", kind="worker", guard="fake", state="draining"),
    Announcement(id="collector-cpu-17", kind="collector", state="ready"),
    Announcement(id="webhooks-cpu-18", kind="webhooks", state="ready"),
    Announcement(id="gateway-cpu-19", kind="gateway", state="ready"),
]


@pytest.mark.parametrize(
    ("role", "host", "ready"),
    [
        ("worker", "gpu-1", True),
        ("worker", "gpu-2", False),  # draining
        ("worker", "gpu", False),  # a host whose name begins another's
        ("worker", "cpu", False),  # its collector is no worker
        ("collector", "cpu", True),
        ("collector", "gpu-1", False),
        ("webhooks", "cpu", True),
        ("webhooks", "gpu-1", False),
        ("gateway", "cpu", True),
        ("gateway", "gpu-1", False),
    ],
)
def test_only_a_ready_process_of_this_host_and_role_counts(role: ProcessKind, host: str, *, ready: bool) -> None:
    assert is_ready(ANNOUNCED, role, host) is ready


def test_where_nothing_is_announced_nothing_is_ready() -> None:
    assert not is_ready([], "worker", "gpu-1")
