"""Two hosts on one machine: network, name, processes, mounts and a CPU are each one's own, the file system is shared. A
cable (a veth pair) joins them, and can be cut. They vanish with the process that made them, and with them what runs
there."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.cli import ROOT, environment
from tests.helpers.processes import alive, workers_of
from tests.helpers.required import NAMESPACES, require, require_namespaces

CABLE = "eth0"
"""The interface of each."""
ADDRESSES = {"n1": "10.77.0.1", "n2": "10.77.0.2"}
BOOT = """set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs run /run
mkdir /run/sshd /run/munge
ip link set lo up
echo up
read -r || true"""
"""The first process of a host, which ends, and all others with it, when its input does. Arguments: name, hosts file."""


class Host:
    """name: what it calls itself. address: under which the others reach it."""

    def __init__(self, name: str, address: str, names: Path):
        self.name, self.address = name, address
        cpus = sorted(os.sched_getaffinity(0))
        self._cpu = str(cpus[list(ADDRESSES).index(name) % len(cpus)])
        boot = [require("unshare", "util-linux"), *NAMESPACES, "--kill-child", "--mount-proc"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._boot = subprocess.Popen([*boot, "bash", "-c", BOOT, "boot", name, str(names)], **pipes)
        assert self._boot.stdout.readline() == b"up\n", f"host {name} does not come up"
        (self.first_process,) = workers_of(self._boot.pid)

    def start(self, *command: object, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """A command there, from the repository's root. log: takes what it says."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self._enter(command), stdout=file, stderr=file, env=environment(**variables), cwd=ROOT
            )

    def run(self, *command: object, seconds: float = 30, env: Mapping[str, str] | None = None) -> str:
        """What a command there prints. Fails where it fails."""
        done = subprocess.run(
            self._enter(command), capture_output=True, text=True, timeout=seconds, env=env, cwd=ROOT, check=False
        )
        assert done.returncode == 0, f"{command} on {self.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def succeeds(self, *command: object) -> bool:
        return subprocess.run(self._enter(command), capture_output=True, timeout=30, check=False).returncode == 0

    def _enter(self, command: tuple[object, ...]) -> list[str]:
        names = ("--net", "--uts", "--mount", "--pid", f"--wdns={ROOT}")
        return [
            "taskset",
            "--cpu-list",
            self._cpu,
            "nsenter",
            "--target",
            str(self.first_process),
            *names,
            "--",
            *map(str, command),
        ]

    def processes(self) -> dict[int, str]:
        """Process id, as it is outside, and command line of all that is alive there, but for the first process."""
        here, found = _namespace(self.first_process), {}
        for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
            if pid != self.first_process and alive(pid) and _namespace(pid) == here:
                with suppress(OSError):  # it ended while we looked
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return found

    def end(self) -> None:
        self._boot.communicate(timeout=30)


def _namespace(pid: int) -> str:
    """The process's namespace of process ids; empty: it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


class Pair:
    """Both, and the cable."""

    def __init__(self, hosts: tuple[Host, Host]):
        self.hosts = hosts
        first, second = hosts
        ends = ["netns", first.first_process, "type", "veth", "peer", "name", CABLE, "netns", second.first_process]
        subprocess.run([require("ip", "iproute2"), "link", "add", CABLE, *map(str, ends)], check=True)
        for host in hosts:
            host.run("ip", "address", "add", f"{host.address}/24", "dev", CABLE)
            host.run("ip", "link", "set", CABLE, "up")

    def cut(self) -> None:
        self.hosts[0].run("ip", "link", "set", CABLE, "down")

    def mend(self) -> None:
        self.hosts[0].run("ip", "link", "set", CABLE, "up")


@contextmanager
def two_hosts(folder: Path, *, named: bool = True) -> Iterator[Pair]:
    """named: each knows both names, as with a name server. Else they are as Debian installs a host: it knows itself
    only, as 127.0.1.1. Skips where namespaces are not allowed."""
    require_namespaces()
    hosts: list[Host] = []
    try:
        for name, address in ADDRESSES.items():
            known = ADDRESSES if named else {name: "127.0.1.1"}
            file = folder / f"hosts-of-{name}"
            file.write_text("127.0.0.1 localhost\n" + "".join(f"{where} {who}\n" for who, where in known.items()))
            hosts.append(Host(name, address, file))
        yield Pair((hosts[0], hosts[1]))
    finally:
        for host in hosts:
            host.end()
