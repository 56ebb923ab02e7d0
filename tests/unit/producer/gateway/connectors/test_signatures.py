"""Signatures of the two clouds: their own worked examples, and that nothing signed can be changed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.gateway.connectors.signatures import ACS3, TC3, Claim, SignedRequest, claim_of, is_signed_with

# https://cloud.tencent.com/document/api/213/30654: the key is 32 asterisks there.
TC3_SECRET = "*" * 32
TC3_REQUEST = SignedRequest(
    "POST",
    "/",
    "",
    {
        "content-type": "application/json; charset=utf-8",
        "host": "cvm.tencentcloudapi.com",
        "x-tc-action": "DescribeInstances",
        "x-tc-timestamp": "1551113065",
    },
    b'{"Limit": 1, "Filters": [{"Values": ["\\u672a\\u547d\\u540d"], "Name": "instance-name"}]}',
)
TC3_AUTHORIZATION = (
    "TC3-HMAC-SHA256 Credential=AKID********************************/2019-02-25/cvm/tc3_request, "
    "SignedHeaders=content-type;host;x-tc-action, "
    "Signature=10b1a37a7301a02ca19a647ad722d5e43b4b3cff309d421d85b46093f6ab6c4f"
)

# https://help.aliyun.com/zh/sdk/product-overview/v3-request-structure-and-signature, "fixed values".
ACS3_SECRET = "YourAccessKeySecret"
ACS3_REQUEST = SignedRequest(
    "POST",
    "/",
    "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai",
    {
        "host": "ecs.cn-shanghai.aliyuncs.com",
        "x-acs-action": "RunInstances",
        "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
        "x-acs-date": "2023-10-26T10:22:32Z",
        "x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
        "x-acs-version": "2014-05-26",
    },
    b"",
)
ACS3_AUTHORIZATION = (
    "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;"
    "x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
)

CASES = [
    pytest.param(TC3, TC3_SECRET, TC3_REQUEST, TC3_AUTHORIZATION, id=TC3),
    pytest.param(ACS3, ACS3_SECRET, ACS3_REQUEST, ACS3_AUTHORIZATION, id=ACS3),
]


def claimed(authorization: str, scheme: str) -> Claim:
    claim = claim_of(authorization, scheme)
    assert claim is not None
    return claim


@pytest.mark.parametrize(("scheme", "secret", "request_", "authorization"), CASES)
def test_the_clouds_own_example_is_signed_with_its_secret_and_no_other(
    scheme: str, secret: str, request_: SignedRequest, authorization: str
) -> None:
    claim = claimed(authorization, scheme)

    assert is_signed_with(secret, claim, request_)
    assert not is_signed_with(secret + "x", claim, request_)


@pytest.mark.parametrize(("scheme", "secret", "request_", "authorization"), CASES)
def test_whatever_is_signed_cannot_be_changed(
    scheme: str, secret: str, request_: SignedRequest, authorization: str
) -> None:
    claim = claimed(authorization, scheme)
    changed = [
        request_._replace(**{part: "x" if part != "body" else b"x"}) for part in ("method", "path", "query", "body")
    ]
    names = {*claim.signed_headers, *(("x-tc-timestamp",) if scheme == TC3 else ())}
    changed += [request_._replace(headers={**request_.headers, name: "1"}) for name in names]

    assert not any(is_signed_with(secret, claim, one) for one in changed)
    assert not is_signed_with(secret, claim._replace(key_id="other", scope=("2019-02-26", "cvm")), changed[0])


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer lk_x",
        TC3_AUTHORIZATION,
        "ACS3-HMAC-SHA256 Credential=a,SignedHeaders=host;x-acs-action;x-acs-date,Signature=b",
        "ACS3-HMAC-SHA256 Credential=a,Signature=b",
    ],
)
def test_a_signature_of_another_scheme_or_that_covers_too_little_is_no_claim(authorization: str) -> None:
    assert claim_of(authorization, ACS3) is None


@given(st.text(), st.text(), st.sampled_from([ACS3, TC3]))
def test_a_header_of_any_form_is_a_claim_or_none_and_never_a_valid_one(given_: str, date: str, scheme: str) -> None:
    claim = claim_of(f"{scheme} {given_}", scheme) or Claim(scheme, "k", (date,), ("host",), given_)
    headers = {"x-tc-timestamp": date, "x-acs-date": date}

    assert not is_signed_with("secret", claim, SignedRequest("POST", "/", "", headers, b""))
