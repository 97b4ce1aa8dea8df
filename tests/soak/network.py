"""Two hosts, as far as the network is concerned: two namespaces and a cable (a veth pair) between them, which can be
cut. They vanish with this process and what runs in them."""

import ctypes
import os
import subprocess
from collections.abc import Sequence

CLONE_NEWNET = 0x40000000
"""linux/sched.h: of setns, a network namespace."""
ADDRESSES = ("10.78.0.1", "10.78.0.2")
CABLE = "eth0"
"""The interface of each host."""


class Network:
    """Raises OSError or CalledProcessError where this user may not make one."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        holders = [subprocess.Popen(["unshare", "--net", "cat"], **pipes) for _ in ADDRESSES]
        try:
            self._namespaces = [_namespace_of(holder) for holder in holders]
            self._ip(0, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", str(holders[1].pid))
            for host, address in enumerate(ADDRESSES):
                self._ip(host, "address", "add", f"{address}/24", "dev", CABLE)
                for interface in ("lo", CABLE):
                    self._ip(host, "link", "set", interface, "up")
        finally:
            for holder in holders:
                holder.communicate()

    def enter(self, host: int) -> None:
        """Take this process to a host, which has a CPU of its own: with two of them a worker would compute in two
        threads, and other sums come out of that."""
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[host % len(cpus)]})
        self._go(host)

    def _go(self, host: int) -> None:
        if ctypes.CDLL(None, use_errno=True).setns(self._namespaces[host], CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def cut(self) -> None:
        self._ip(0, "link", "set", CABLE, "down")

    def mend(self) -> None:
        self._ip(0, "link", "set", CABLE, "up")

    def _ip(self, host: int, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], preexec_fn=lambda: self._go(host), check=True, capture_output=True)


def on_both(arguments: Sequence[str]) -> list[list[str]]:
    """The commands of two hosts that do what one does by itself with two processes."""
    command, config, *more = arguments
    nodes = ["--nodes", "2", "--master-addr", ADDRESSES[0], "--node-rank"]
    return [[command, config, "processes=1", *more, *nodes, str(host)] for host in range(len(ADDRESSES))]


def _namespace_of(holder: subprocess.Popen[bytes]) -> int:
    """Of a `cat` that was started in one: a file descriptor that keeps it."""
    assert holder.stdin and holder.stdout
    holder.stdin.write(b"up\n")
    holder.stdin.flush()
    if holder.stdout.readline() != b"up\n":
        raise OSError("namespaces are not allowed")
    return os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
