"""What a program that uses Aliyun's SDK sees of some texts: `aliyun.py HOST:PORT KEY_ID SECRET TEXT...`."""

import json
import sys

from alibabacloud_green20220302.client import Client
from alibabacloud_green20220302.models import TextModerationPlusRequest
from alibabacloud_tea_openapi.models import Config

endpoint, key_id, secret, *texts = sys.argv[1:]


def asked(text, with_secret=secret):
    """Level, labels and confidence, or the exception's classes and its code."""
    config = Config(access_key_id=key_id, access_key_secret=with_secret, endpoint=endpoint, protocol="http")
    parameters = json.dumps({"content": text, "dataId": "d1"})
    request = TextModerationPlusRequest(service="comment_detection", service_parameters=parameters)
    try:
        body = Client(config).text_moderation_plus(request).body
    except Exception as error:  # noqa: BLE001 - which one it is, is asked
        return [[one.__name__ for one in type(error).__mro__], error.code]
    rows = [[row.label, row.confidence] for row in body.data.result]
    return {"code": body.code, "level": body.data.risk_level, "rows": rows, "data_id": body.data.data_id}


print(json.dumps({"answers": [asked(text) for text in texts], "wrong secret": asked(texts[0], "ls_no")}))
