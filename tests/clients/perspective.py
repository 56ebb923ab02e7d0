"""What a program that uses Google's client sees of some texts: `perspective.py URL KEY TEXT...`."""

import json
import sys

from googleapiclient import discovery
from googleapiclient.errors import HttpError

url, key, *texts = sys.argv[1:]


def built(developer_key):
    """A client as Perspective's own documentation makes it, at another address."""
    return discovery.build(
        "commentanalyzer",
        "v1alpha1",
        developerKey=developer_key,
        discoveryServiceUrl=f"{url}/$discovery/rest?version=v1alpha1",
        static_discovery=False,
    )


def asked(client, text):
    """The attribute scores of a text, or the error's class, status and reason."""
    body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}, "THREAT": {}}, "languages": ["zh"]}
    try:
        answer = client.comments().analyze(body=body).execute()
    except HttpError as error:
        return [type(error).__name__, error.status_code, error.reason]
    return {name: one["summaryScore"]["value"] for name, one in answer["attributeScores"].items()}


print(
    json.dumps(
        {
            "answers": [asked(built(key), text) for text in texts],
            "wrong key": asked(built("lk_no"), texts[0]),
        }
    )
)
