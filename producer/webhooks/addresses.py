"""The addresses that a webhook may reach: none inside our own networks, unless the operator names them (SSRF).

A name is resolved once, every address of it is checked, and the connection goes to a checked address: a name that
changes its mind between check and connection (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from infra.errors import UsageError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LONGEST_URL: Final = 2_048
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_UNICAST_V6: Final = ipaddress.ip_network("2000::/3")
_SPECIAL: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # public by its number, yet a cloud's inside: Azure's platform address
        "192.0.0.0/24",  # with Oracle's platform address
        "192.88.99.0/24",
        "2001::/23",
        "3fff::/20",
    )
)
"""Kept out of the internet by IANA's special-purpose registries, and let through by Python's `is_global` (3.11)."""


class RefusedAddressError(UsageError):
    """An address that a webhook may not reach."""


@dataclass(frozen=True)
class Allowed:
    """Hosts and networks that may be reached although they are inside, and by plain http."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[_Network, ...] = ()

    @classmethod
    def parse(cls, listed: str | None) -> Allowed:
        """From a setting: names and networks, separated by commas; UsageError on what is neither."""
        hosts: set[str] = set()
        networks: list[_Network] = []
        for entry in filter(None, map(str.strip, (listed or "").split(","))):
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                if "/" in entry or ":" in entry:
                    raise UsageError(f"LIBRA_WEBHOOK_ALLOW: {entry!r} is no host and no network: {error}") from error
                hosts.add(entry.lower())
        return cls(frozenset(hosts), tuple(networks))

    def covers(self, address: IpAddress) -> bool:
        """True if an address lies in a named network."""
        return any(address in network for network in self.networks)


def parsed_url(url: str) -> SplitResult:
    """A webhook's address, checked for what can be known without resolving it, or RefusedAddressError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise RefusedAddressError(f"not a URL: {error}") from error
    if len(url) > _LONGEST_URL or not url.isprintable() or " " in url:
        raise RefusedAddressError("not a URL: too long, or with spaces or control characters")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise RefusedAddressError("not an absolute https URL")
    if parts.username is not None or parts.password is not None:
        raise RefusedAddressError("a webhook's URL carries no account")
    return parts


def refusal(address: IpAddress) -> str | None:
    """The reason why an address is not for webhooks, or None where it is an ordinary public one."""
    if isinstance(address, ipaddress.IPv6Address):  # the IPv4 address that it leads to decides, where there is one
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return refusal(inner)
    inside = address.is_multicast or address.is_reserved or not address.is_global
    unassigned = address.version == 6 and address not in _UNICAST_V6
    if inside or unassigned or any(address in network for network in _SPECIAL):
        return f"{address} is not a public address"
    return None


async def checked_addresses(url: str, allowed: Allowed) -> list[IpAddress]:
    """The addresses that a webhook's host has now, each of them allowed.

    Raises:
        RefusedAddressError: one of them is not, or the URL is plain http.
        OSError: the name does not resolve.
    """
    parts = parsed_url(url)
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(_address(entry[4][0]) for entry in found))
    _require_allowed(parts, addresses, allowed)
    return addresses


def check_form(url: str, allowed: Allowed) -> None:
    """Refuse a URL that `checked_addresses` would refuse whatever names resolve to; nothing is resolved here.

    Raises:
        RefusedAddressError: it is no URL for webhooks, its host is the number of an address that is not allowed, in
            whatever way of writing, or it is plain http and no allowed network could hold its host.
    """
    parts = parsed_url(url)
    flags = socket.AI_NUMERICHOST  # a number is read as the resolver would, a name is an error
    try:
        found = socket.getaddrinfo(str(parts.hostname), None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        if not allowed.networks:  # a name may have addresses in any of them
            _require_allowed(parts, [], allowed)
    else:
        _require_allowed(parts, [_address(found[0][4][0])], allowed)


def _require_allowed(parts: SplitResult, addresses: Sequence[IpAddress], allowed: Allowed) -> None:
    host = str(parts.hostname)
    named = host.lower() in allowed.hosts
    inside = named or (bool(addresses) and all(map(allowed.covers, addresses)))
    if parts.scheme != "https" and not inside:
        raise RefusedAddressError("https is required")
    for address in addresses:
        why = None if named or allowed.covers(address) else refusal(address)
        if why:
            raise RefusedAddressError(f"{host}: {why}")


def _address(text: str | int) -> IpAddress:
    """The address of a resolver's answer; a zone ("%eth0") marks a link-local address and stays refused without it."""
    return ipaddress.ip_address(str(text).partition("%")[0])
