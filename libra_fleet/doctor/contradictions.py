"""Settings that are each allowed and do not go together."""

from __future__ import annotations

from collections.abc import Iterator

from infra.coordination.leases import HELD_FOR_S
from infra.settings import Settings
from libra_fleet.doctor.finding import Finding, error, good, warning


def check_settings(settings: Settings, *, slowest_chunk_s: float | None = None) -> Iterator[Finding]:
    """Findings on the settings alone, and on them beside the slowest chunk of the last day (seconds), if known."""
    found = [*_times(settings), *_beside(settings, slowest_chunk_s)]
    yield from found
    if not found:
        yield good("settings", "no two of them contradict each other")


def _times(settings: Settings) -> Iterator[Finding]:
    if settings.visibility_timeout_s <= settings.batch_deadline_s:
        yield error(
            "settings",
            f"LIBRA_VISIBILITY_TIMEOUT_S ({settings.visibility_timeout_s}) is not above LIBRA_BATCH_DEADLINE_S "
            f"({settings.batch_deadline_s:g})",
            why="Celery delivers a chunk again while its batch may still run, and it is judged twice",
            do=f"LIBRA_VISIBILITY_TIMEOUT_S={int(4 * settings.batch_deadline_s)}",
        )
    for name in ("bulk_lease_s", "live_lease_s"):
        lease_s = getattr(settings, name)
        if lease_s < settings.reconcile_every_s:
            yield warning(
                "settings",
                f"LIBRA_{name.upper()} ({lease_s:g}) is shorter than LIBRA_RECONCILE_EVERY_S "
                f"({settings.reconcile_every_s:g})",
                why="the reconciler does not look often enough to keep that lease",
                do=f"LIBRA_RECONCILE_EVERY_S={lease_s / 2:g}",
            )
        elif lease_s < HELD_FOR_S:
            yield warning(
                "settings",
                f"LIBRA_{name.upper()} ({lease_s:g}) is shorter than the {HELD_FOR_S} s for which a consumer's word "
                "counts that it holds a chunk",
                why="a consumer that pauses for a moment has its chunks judged a second time elsewhere",
                do=f"LIBRA_{name.upper()}={2 * HELD_FOR_S}",
            )
    if settings.live_high_water_age_s > settings.gateway_wait_s:
        yield warning(
            "settings",
            f"LIBRA_LIVE_HIGH_WATER_AGE_S ({settings.live_high_water_age_s:g}) is above LIBRA_GATEWAY_WAIT_S "
            f"({settings.gateway_wait_s:g})",
            why="an overloaded gateway answers 202 to everybody long before it answers 429 to anybody",
            do=f"LIBRA_LIVE_HIGH_WATER_AGE_S={settings.gateway_wait_s / 2:g}",
        )


def _beside(settings: Settings, slowest_chunk_s: float | None) -> Iterator[Finding]:
    if slowest_chunk_s is None:
        return
    for name, seconds, why in (
        ("VISIBILITY_TIMEOUT", settings.visibility_timeout_s, "Celery delivers such a chunk again while it is judged"),
        (
            "BULK_LEASE",
            settings.bulk_lease_s,
            "when the board is lost, such a chunk counts as lost too, and runs twice",
        ),
        ("DRAIN", settings.drain_s, "a stopping worker hands such a chunk back half done, and it runs again elsewhere"),
    ):
        if seconds < slowest_chunk_s:
            yield warning(
                "settings",
                f"LIBRA_{name}_S ({seconds:g}) is below the {slowest_chunk_s:,.0f} s that the slowest chunk of the "
                "last day took",
                why=why,
                do=f"LIBRA_{name}_S={int(2 * slowest_chunk_s)}, or fewer items in a chunk (LIBRA_CHUNK_ITEMS)",
            )
