"""Where webhooks may not go: anywhere inside, however it is written."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from infra.errors import UsageError
from producer.webhooks.addresses import (
    Allowed,
    RefusedAddressError,
    check_form,
    checked_addresses,
    parsed_url,
    refusal,
)

NOBODY = Allowed()


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Names resolve to these addresses; numbers as the system has them."""

    def answer(host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def checked(url: str, allowed: Allowed = NOBODY) -> list[str]:
    return [str(address) for address in asyncio.run(checked_addresses(url, allowed))]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",  # noqa: S104 - refused, not bound
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[::7f00:1]",
        "[fec0::1]",
        "[64:ff9b:1::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "localhost",
    ],
)
def test_no_inner_address_is_reached_however_it_is_written(host: str) -> None:
    with pytest.raises(RefusedAddressError, match="address"):
        checked(f"https://{host}/hook")


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "64:ff9b::5db8:d70e"])
def test_an_ordinary_address_is_reached(address: str) -> None:
    assert refusal(ipaddress.ip_address(address)) is None


def test_a_name_is_refused_if_any_of_its_addresses_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "10.0.0.1")

    with pytest.raises(RefusedAddressError, match=r"10\.0\.0\.1"):
        checked("https://example.com/")


def test_a_name_of_public_addresses_gives_just_these(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "93.184.215.14", "2606:4700::1111")

    assert checked("https://example.com/") == ["93.184.215.14", "2606:4700::1111"]


def test_plain_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14")

    with pytest.raises(RefusedAddressError, match="https is required"):
        checked("http://example.com/")


@pytest.mark.parametrize("listed", ["hook.internal", "10.0.0.0/8", "x, 10.0.0.1 ,"])
def test_what_the_operator_names_may_be_inside_and_plain(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    resolving(monkeypatch, "10.0.0.1")

    assert checked("http://hook.internal:8080/", Allowed.parse(listed)) == ["10.0.0.1"]


def test_naming_one_network_opens_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "10.0.0.1", "192.168.0.1")

    with pytest.raises(RefusedAddressError, match=r"192\.168"):
        checked("https://hook.internal/", Allowed.parse("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("http://example.com/", None),
        ("http://example.com/", "hook.internal"),
        ("http://93.184.215.14/", "10.0.0.0/8"),
        ("https://10.0.0.1/", None),
        ("https://10.0.0.1/", "192.168.0.0/16"),
        ("https://0x7f000001:8443/", None),
        ("https://[::ffff:127.0.0.1]/", None),
        ("ftp://example.com/", "example.com"),
    ],
)
def test_what_no_resolving_could_make_right_is_refused_by_form(url: str, listed: str | None) -> None:
    with pytest.raises(RefusedAddressError):
        check_form(url, Allowed.parse(listed))


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("https://example.com/", None),
        ("https://93.184.215.14/", None),
        ("http://hook.internal/", "hook.internal"),
        ("http://hook.internal/", "10.0.0.0/8"),  # a name may have an address there
        ("http://10.0.0.1:8080/", "10.0.0.0/8"),
        ("https://127.1/", "127.0.0.1"),
    ],
)
def test_what_may_be_right_once_it_is_resolved_passes_by_form(url: str, listed: str | None) -> None:
    check_form(url, Allowed.parse(listed))


@pytest.mark.parametrize("listed", ["10.0.0.1/8", "fe80::zz", "1.2.3.4/99"])
def test_a_setting_that_is_neither_host_nor_network_is_refused(listed: str) -> None:
    with pytest.raises(UsageError, match="LIBRA_WEBHOOK_ALLOW"):
        Allowed.parse(listed)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "example.com",
        "https://a@example.com",
        "https://a:b@example.com",
        "https://example.com:x/",
        "https://example.com:99999/",
        "https://[::1",
        "https://example.com/\r\nx: y",
        "https://example.com/a b",
        "https://example.com/" + "a" * 2_048,
    ],
)
def test_what_is_no_absolute_url_without_account_is_refused(url: str) -> None:
    with pytest.raises(RefusedAddressError):
        parsed_url(url)
