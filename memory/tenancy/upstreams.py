"""Which Mem0 a project of its own choice may have: an address that a person typed must not reach inside the network.

Private addresses are for hosts that the operator names in PROJECT_UPSTREAM_HOSTS; link-local ones, where clouds keep
their metadata, are for nobody. MEM0_REST_API_URL is the operator's own and is not judged here.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from django.conf import settings

METADATA = [ip_network(each) for each in ("fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32")]
"""Clouds' metadata outside the link-local range: AWS over IPv6, Alibaba, Azure."""
NAT64 = ip_network("64:ff9b::/96")
"""Whose gateway leads to the IPv4 address in the last 32 bits (RFC 6052)."""


def check(url: str) -> None:
    """ValueError, with what to change, for an address that no project may have."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("This is no URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("An upstream is http:// or https:// and a host.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("The key belongs into its own field, not into the URL.")
    if parts.query or parts.fragment:
        raise ValueError("An upstream has no query and no fragment.")
    try:
        address = str(ip_address(host))
    except ValueError:
        return  # a name is judged by what it leads to, when it is connected to
    if not permitted(host, address):
        raise ValueError("This address is not public: the operator may name it in PROJECT_UPSTREAM_HOSTS.")


def permitted(host: str, address: str) -> bool:
    """Whether a connection to this host that has arrived at this address may be used."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inside = IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else None
        found = inside or found.ipv4_mapped or found.sixtofour or found
    if found.is_link_local or found.is_multicast or found.is_unspecified or any(found in net for net in METADATA):
        return False
    return found.is_global or host.lower() in settings.PROJECT_UPSTREAM_HOSTS
