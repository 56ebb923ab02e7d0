"""The only reader of the environment. Every setting is `LIBRA_` plus its name in capitals.

Entry points call `load_settings()` once and pass the values on; nothing else looks at the environment.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from platformdirs import user_state_path
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import UsageError
from schemas.guards import TextForm
from schemas.items import Retention

_OF_A_SERVICE: Final = re.compile(r"_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?)$")
"""Variables that Kubernetes sets for its services, some of which are named libra-*."""


class Settings(BaseSettings):
    """All settings of a process, each with its unit in its name."""

    model_config = SettingsConfigDict(
        env_prefix="LIBRA_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # an address may hold a password
    )

    redis_url: SecretStr | None = Field(None, description="Redis or Valkey; none: the embedded Valkey")
    database_url: SecretStr | None = Field(None, description="Postgres; none: the embedded Postgres")
    state_dir: Path = Field(
        default_factory=lambda: user_state_path("libra-fleet"), description="embedded servers' data, runtime sockets"
    )
    namespace: str = Field("libra", pattern=r"^[a-z][a-z0-9_-]{0,30}$", description="prefix of every Redis key")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line to log")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="where spans go by OTLP over HTTP, as http://127.0.0.1:4318; none: no traces",
    )

    chunk_items: int = Field(64, ge=1, le=1024, description="items in a bulk chunk, at most")
    chunk_bytes: int = Field(1 << 20, ge=1024, description="text bytes in a bulk chunk, at most")
    window_items: int = Field(4096, ge=1, description="items committed to the ledger at a time, sorted by length")
    window_bytes: int = Field(1 << 25, ge=1024, description="text bytes committed to the ledger at a time, about")
    high_water_chunks: int = Field(256, ge=1, description="the producer waits while more chunks wait on queues")
    high_water_age_s: float = Field(600, gt=0, description="the producer waits while a queued chunk is older")

    live_high_water_age_s: float = Field(5, gt=0, description="the gateway answers 429 while a live chunk is older")

    api_key: SecretStr | None = Field(None, description="key with which `libra submit` asks a gateway")
    connector_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="signing secrets of keys are derived from it, for the clouds' wires; none: these are off",
    )
    gateway_wait_s: float = Field(10, gt=0, le=300, description="how long a moderation waits for its verdicts")
    unjudged: Literal["flag", "error"] = Field(
        "flag",
        description="a text that could not be judged, on OpenAI's routes and foreign wires: flagged, or an error",
    )
    unnamed_category: str = Field(
        "all", description="OpenAI's category that is true where the guard named none: all, or its name"
    )
    gateway_gather_ms: float = Field(20, ge=0, le=1000, description="commits of a tenant's items begin no closer")
    gateway_threads: int = Field(6, ge=2, description="threads for the ledger and the broker, per gateway")
    gateway_body_bytes: int = Field(8 << 20, ge=1024, description="a request's body, at most; uploads excepted")
    gateway_file_bytes: int = Field(64 << 20, ge=1024, description="an uploaded file, at most")
    gateway_cors_origins: str | None = Field(None, description="origins whose pages may call; commas between")
    gateway_key_cache_s: float = Field(5, ge=0, description="a revoked key may be honoured for this long")
    console_session_s: int = Field(28_800, ge=60, description="a login to the console lasts this long")
    tenant_items_per_minute: int = Field(60_000, ge=1, description="items a tenant may submit in a minute")
    tenant_pending_items: int = Field(2_000, ge=1, description="live items of a tenant that may wait, fleet-wide")
    idempotency_keep_s: float = Field(86_400, ge=86_400, description="an Idempotency-Key is remembered for this")

    text_form: TextForm = Field(
        TextForm.AS_IS, description="what a gateway's guard is asked about: texts as-is, normal, or the worse of both"
    )
    retention: Retention = Field(Retention.FULL, description="full, hash or none: text that stays once settled")

    ledger_lock_s: float = Field(
        5, gt=0, description="how long a statement waits for a row that another session has locked before it fails"
    )
    ledger_settle_lock_s: float = Field(
        1, gt=0, description="the same in a collector, which then settles the others first and comes back"
    )
    ledger_statement_s: float = Field(60, gt=0, description="a gateway's statement ends by then: its caller is gone")
    ledger_settle_statement_s: float = Field(30, gt=0, description="a collector's; others wait for the rows it locks")
    ledger_long_statement_s: float = Field(
        3600, gt=0, description="a statement of a command, report, export or purge: over a run of any size"
    )
    ledger_idle_s: float = Field(
        10, gt=0, description="the server ends a transaction of a process that stopped this long, and frees its locks"
    )
    ledger_stream_idle_s: float = Field(
        600, gt=0, description="the same while rows are streamed, as fast as they are read; such a session locks none"
    )
    ledger_peer_s: float = Field(
        15, ge=3, description="a ledger connection that answers nothing for this long is given up, at either end"
    )

    cache_ttl_s: int = Field(86_400, ge=0, description="how long a device's answers are kept; 0: not at all")

    bulk_threads: int | None = Field(
        None, ge=1, description="bulk chunks a consumer holds at once; none: by the device's budget, 4 to 64"
    )
    live_threads: int = Field(8, ge=1, description="live chunks a consumer holds at once")
    collector_threads: int = Field(16, ge=1, description="verdict chunks a collector holds at once")
    visibility_timeout_s: int = Field(900, ge=10, description="Celery redelivers an unacknowledged chunk after this")
    bulk_lease_s: float = Field(
        60, gt=0, description="a dispatched bulk chunk that no consumer holds counts as lost after this"
    )
    live_lease_s: float = Field(10, gt=0, description="the same for live chunks")
    finalize_lease_s: float = Field(60, gt=0, description="a report whose finalizer died is computed again after this")
    reconcile_every_s: float = Field(2, gt=0, description="how often the reconciler looks")
    reconciler_lease_s: float = Field(
        7, gt=0, description="how long the leader may be silent before another collector reconciles"
    )
    max_attempts: int = Field(5, ge=1, description="a chunk lost this often settles as dead")
    cuda_visible_devices: str | None = Field(
        default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"),  # empty is a value: it hides every device
        validation_alias="CUDA_VISIBLE_DEVICES",
        description="limits the devices that `--devices` means; empty: none",
    )
    parent_pid: int | None = Field(None, description="die when this process is gone; set for what we start ourselves")

    score_categories: Literal["all", "live", "none"] = Field(
        "all", description="mode score asks guards that can for the category of an unsafe item: a second, short pass"
    )
    scenario_experiment: bool = Field(
        default=False, description="the same of Libra Guard, for one of its seven scenarios: an experiment"
    )
    max_batch_tokens: int | None = Field(None, ge=16, description="token budget of a batch; none: by the engine")
    batch_deadline_s: float = Field(120, gt=0, description="a batch that runs longer is killed")
    silence_s: float = Field(10, gt=0, description="a device process or consumer without a sign of life is killed")
    max_item_deaths: int = Field(2, ge=1, description="a prompt that kills the device this often, alone, is dead")
    webhook_allow: str | None = Field(
        None, description="hosts and networks inside that webhooks may reach, by http as well; commas between"
    )
    webhook_retry_s: tuple[float, ...] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        description="seconds before each further attempt at a webhook, as a JSON list",
    )
    webhook_timeout_s: float = Field(15, gt=0, description="a webhook's receiver must have answered by then")
    webhook_connections: int = Field(32, ge=1, description="webhooks a sender sends at once")
    webhook_poll_s: float = Field(1, gt=0, description="how often a sender looks for webhooks that are due")

    price_per_device_hour: float | None = Field(
        None, ge=0, description="what an hour of a device costs, in your currency: shown as money alongside device time"
    )

    drain_s: float = Field(60, gt=0, description="how long SIGTERM waits for work in hand")
    wait_for_servers_s: float = Field(30, ge=0, description="how long a start waits for Redis and Postgres")

    def require_redis_url(self) -> str:
        """The Redis URL.

        Raises:
            UsageError: none is configured.
        """
        return _required(self.redis_url, "LIBRA_REDIS_URL")

    def require_database_url(self) -> str:
        """The Postgres URL.

        Raises:
            UsageError: none is configured.
        """
        return _required(self.database_url, "LIBRA_DATABASE_URL")


def _required(url: SecretStr | None, variable: str) -> str:
    if url is None:
        raise UsageError(f"{variable} is not set")
    return url.get_secret_value()


def load_settings() -> Settings:
    """Settings from the environment and `.env`.

    Raises:
        UsageError: a variable has a value it cannot have; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"LIBRA_{str(d['loc'][0]).upper()}: {d['msg']}" for d in error.errors(include_input=False)]
        raise UsageError("bad setting: " + "; ".join(lines)) from error


def unknown_settings() -> dict[str, str | None]:
    """LIBRA_* variables that no setting reads, each with the setting it may be a misspelling of."""
    known = [f"LIBRA_{name.upper()}" for name in Settings.model_fields]
    found = sorted(name for name in os.environ if name.startswith("LIBRA_") and name not in known)
    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.85) for name in found}
    return {name: close[name][0] if close[name] else None for name in found if not _OF_A_SERVICE.search(name)}


def child_environment(_unless_set: Mapping[str, str] | None = None, /, **changes: str) -> dict[str, str]:
    """This process's environment with changes, for a process we start; the mapping yields to what it holds already."""
    return {**(_unless_set or {}), **os.environ, **changes}
