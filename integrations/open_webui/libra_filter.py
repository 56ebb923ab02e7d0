"""
title: Libra Fleet moderation
version: 0.1.0
required_open_webui_version: 0.5.0
license: Apache-2.0
description: Blocks prompts and answers that Libra Fleet does not let pass. What could not be judged does not pass.
"""

# One file without imports of ours: it is pasted into Open WebUI, under Admin Panel, Functions.

import asyncio
import json
import urllib.request

from pydantic import BaseModel, Field


class BlockedError(Exception):
    """Shown to the user in place of an answer."""


class Filter:
    """Open WebUI calls `inlet` with what goes to the model, and `outlet` with what has come from it."""

    class Valves(BaseModel):
        """The settings of this filter, edited in Open WebUI."""

        url: str = Field("http://127.0.0.1:8000", description="the gateway's address")
        key: str = Field("", description="an API key of the gateway (libra keys create)")
        wait_s: float = Field(10, gt=0, description="how long to wait for a verdict")
        message: str = Field(
            "内容未通过审核。 This content was not let through.", description="what the user reads instead"
        )

    def __init__(self):
        self.valves = self.Valves()
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # texts go through no proxy

    async def inlet(self, body: dict) -> dict:
        """The request as it came, or an error in place of an answer."""
        if not await self._passes({"messages": body.get("messages")}, "open_webui.request"):
            raise BlockedError(self.valves.message)
        return body

    async def outlet(self, body: dict) -> dict:
        """The conversation, its last answer replaced where it does not pass."""
        answer = body["messages"][-1]
        if not await self._passes(
            {"choices": [{"message": {"content": answer.get("content")}}]}, "open_webui.response"
        ):
            answer["content"] = self.valves.message
        return body

    async def _passes(self, content: dict, surface: str) -> bool:
        return await asyncio.to_thread(self._ask, content, surface)

    def _ask(self, content: dict, surface: str) -> bool:
        """Whether the gateway lets it pass; no answer is no pass."""
        valves = self.valves
        address = f"{valves.url.rstrip('/')}/connect/webhook?surface={surface}&wait_s={valves.wait_s}"
        headers = {"Authorization": f"Bearer {valves.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(content).encode(), headers)
        try:
            with self._open(request, timeout=valves.wait_s + 5) as answer:
                return json.load(answer)["verdict"] is True
        except Exception:  # noqa: BLE001 - whatever goes wrong, an error here would let an answer stand
            return False
