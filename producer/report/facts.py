"""A run's report and its cost as JSON and in a line: device seconds, tokens and, where there is a price, money."""

from __future__ import annotations

import json
from typing import Any

from rich.text import Text

from schemas.runs import Cost, RunReport


def to_json(report: RunReport, *, price_per_device_hour: float | None = None) -> str:
    """The whole report, indented, Chinese as it is; equal reports give equal text. With a price, cost is money too.

    `RunReport.model_validate_json` reads it back.
    """
    content = report.model_dump(mode="json")
    for unordered in ("fingerprint", "dead_reasons"):
        content[unordered] = dict(sorted(content[unordered].items()))
    if report.cost is not None:
        content["cost"] = cost_facts(report.cost, price_per_device_hour)
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def cost_facts(cost: Cost, price: float | None) -> dict[str, Any]:
    """A cost as JSON has it, per 1,000 verdicts too; money only where there is a price per device hour."""
    facts: dict[str, Any] = cost.model_dump(mode="json")
    amounts = {"device_s": cost.device_s, "prompt_tokens": cost.prompt_tokens, "new_tokens": cost.new_tokens}
    if price is not None:
        facts["price_per_device_hour"] = price
        facts["money"] = amounts["money"] = cost.money(price)
    facts["per_1000_verdicts"] = {name: cost.per_1000(amount) for name, amount in amounts.items()}
    return facts


def cost_line(cost: Cost, price: float | None) -> Text:
    """A cost in one line of a report."""
    facts = [f"{cost.device_s:,.1f} device-seconds", f"{cost.prompt_tokens:,} tokens read"]
    if cost.new_tokens:
        facts.append(f"{cost.new_tokens:,} written")
    if (per_1000 := cost.per_1000(cost.device_s)) is not None:
        facts.append(f"{amount_text(per_1000)} s per 1,000 verdicts")
    if price is not None and (money := cost.per_1000(cost.money(price))) is not None:
        facts.append(f"{amount_text(money)} per 1,000 at {price:g} an hour")
    if cost.measured < cost.verdicts:
        facts.append(f"measured on {cost.measured:,} of {cost.verdicts:,}")
    return Text(f"cost: {' · '.join(facts)}")


def amount_text(value: float) -> str:
    """Three figures that count, and no exponent."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"
