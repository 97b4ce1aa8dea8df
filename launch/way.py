"""What torchrun must be told of the way to node 0, for torchrun.sh: it goes by the host's own name, which may lead to
loopback. Prints options, none where there is no way. Needs nothing but Python: way.py ADDRESS PORT
"""

import socket
import sys


def ends(address: str, port: int) -> tuple[str, str]:
    """Addresses of this host and of node 0 on the way (nothing is sent). Raises OSError where there is none."""
    family, kind, protocol, _, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(there)
        return way.getsockname()[0], way.getpeername()[0]


def options(address: str, port: int) -> str:
    try:
        own, first = ends(address, port)
    except OSError:
        return ""
    here = own == first and not own.startswith("127.")  # on loopback any node could be the first
    return f"--local-addr {own}" + " --rdzv-conf is_host=1" * here


if __name__ == "__main__":
    print(options(sys.argv[1], int(sys.argv[2])))
