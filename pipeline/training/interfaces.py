"""The network interface by which the other hosts of a training reach this one.

gloo listens at the address that the host's own name leads to. Debian installs a host that knows itself as 127.0.1.1,
where no other host gets to; then the interface on the way to rank 0 is the one.
"""

import os
import socket
from ipaddress import ip_address

import psutil

VARIABLE = "GLOO_SOCKET_IFNAME"
"""Read by torch, which listens on the interface of this name. NCCL never takes loopback by itself."""


def choose(master: str, port: int) -> None:
    """Set `VARIABLE` where the host's name leads to loopback though rank 0, at `master`, is reached by another
    interface. What a user has set stays."""
    own = source_address(master, port)
    if VARIABLE in os.environ or own is None or ip_address(own).is_loopback or not _name_leads_to_loopback():
        return
    if name := _interface_of(own):
        os.environ[VARIABLE] = name


def source_address(host: str, port: int) -> str | None:
    """This host's address on the way to another (nothing is sent); None where there is no way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(address)
            return str(way.getsockname()[0])
    except OSError:
        return None


def _name_leads_to_loopback() -> bool:
    """Also where it leads nowhere: torch takes loopback then."""
    try:
        addresses = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return True
    return ip_address(str(addresses[0][4][0]).partition("%")[0]).is_loopback


def _interface_of(address: str) -> str | None:
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, entries in interfaces if any(each.address == address for each in entries)), None)
