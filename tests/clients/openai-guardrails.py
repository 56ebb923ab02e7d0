"""Whether OpenAI's own guardrail, watching one category, stops some texts: `openai-guardrails.py URL KEY TEXT...`."""

import asyncio
import json
import os
import sys

url, key, *texts = sys.argv[1:]
os.environ |= {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}

from guardrails.checks.text.moderation import Category, ModerationCfg, moderation  # noqa: E402 - reads the environment


async def stopped() -> list:
    """For each text whether the tripwire was triggered."""
    found = []
    for text in texts:
        result = await moderation(None, text, ModerationCfg(categories=[Category.VIOLENCE]))
        found.append(result.tripwire_triggered)
    return found


print(json.dumps(asyncio.run(stopped())))
