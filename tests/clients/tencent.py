"""What a program that uses Tencent's SDK sees of some texts: `tencent.py HOST:PORT KEY_ID SECRET TEXT...`."""

import base64
import json
import sys

from tencentcloud.common.credential import Credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.tms.v20201229 import models, tms_client

endpoint, key_id, secret, *texts = sys.argv[1:]


def asked(text, with_secret=secret):
    """Suggestion, label and score, or the exception's code."""
    profile = ClientProfile(httpProfile=HttpProfile(endpoint=endpoint, protocol="http"))
    client = tms_client.TmsClient(Credential(key_id, with_secret), "ap-guangzhou", profile)
    request = models.TextModerationRequest()
    request.Content = base64.b64encode(text.encode()).decode()
    request.DataId = "d1"
    try:
        answer = client.TextModeration(request)
    except TencentCloudSDKException as error:
        return [type(error).__name__, error.code]
    details = [[row.Label, row.Suggestion, row.Score] for row in answer.DetailResults]
    named = {"suggestion": answer.Suggestion, "label": answer.Label, "score": answer.Score, "data_id": answer.DataId}
    return {**named, "details": details}


print(json.dumps({"answers": [asked(text) for text in texts], "wrong secret": asked(texts[0], "ls_no")}))
