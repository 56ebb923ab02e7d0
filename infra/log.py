"""One log for every process: JSON for machines, readable on a terminal, ours and the libraries' alike.

No user text is ever logged by default; run, chunk and item ids are bound where they are known.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

from infra import tracing

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    tracing.add_ids,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)

_NOISY = ("celery", "kombu", "amqp", "alembic", "httpx", "httpx2", "matplotlib", "urllib3", "transformers")


def configure_logging(level: str, style: Literal["auto", "json", "console"], **bound: str) -> None:
    """Send everything to standard error, once per process. `bound` values appear on every line."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        # Its own formatter shows local variables, which hold user text.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    tail: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not console:
        tail.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=[*tail, renderer])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.contextvars.bind_contextvars(**bound)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
