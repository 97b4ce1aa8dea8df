"""What torchrun must be told of the way to node 0, for torchrun.sh: it goes by the host's own name, which may lead to
loopback. Prints options. Needs nothing but Python.

way.py ADDRESS PORT [SECONDS]    SECONDS: wait so long for node 0 to listen, unless this is node 0
"""

import socket
import sys
import time

PATIENCE = 10
"""Seconds that torchrun waits for an answer of node 0, also when it ends: by default 60, three times over after a cut
link. It counts for the first meeting too, hence SECONDS."""


def ends(address: str, port: int) -> tuple[str, str]:
    """Addresses of this host and of node 0 on the way (nothing is sent). Raises OSError where there is none."""
    family, kind, protocol, _, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(there)
        return way.getsockname()[0], way.getpeername()[0]


def wait(address: str, port: int, seconds: float) -> None:
    """Until node 0 listens. Raises SystemExit."""
    latest = time.monotonic() + seconds
    while time.monotonic() < latest:
        try:
            socket.create_connection((address, port), timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise SystemExit(f"node 0 does not listen at {address}:{port}; start it, and check MASTER_ADDR and MASTER_PORT")


def main(address: str, port: str, seconds: str = "0") -> None:
    try:
        own, first = ends(address, int(port))
    except OSError as error:
        raise SystemExit(f"no way to node 0 at {address}:{port}: {error}; check MASTER_ADDR and MASTER_PORT") from None
    here, several = own == first, not own.startswith("127.")
    if not here and float(seconds):
        wait(address, int(port), float(seconds))
    print(f"--local-addr {own} --rdzv-conf read_timeout={PATIENCE}" + ",is_host=1" * (here and several))


if __name__ == "__main__":
    main(*sys.argv[1:])
