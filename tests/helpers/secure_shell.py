"""sshd on two hosts (tests/helpers/hosts.py), with keys of its own: nothing of the user's is read or changed."""

import os
import subprocess
from pathlib import Path

from tests.helpers.hosts import ADDRESSES, Pair
from tests.helpers.required import require
from tests.helpers.waiting import wait_for

SERVER = """
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
CLIENT = """
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known-hosts
GlobalKnownHostsFile none
BatchMode yes
LogLevel ERROR
"""


def start_sshd(pair: Pair, folder: Path) -> dict[str, str]:
    """Has every host let the other ones in. The variables that launch/hostfile.sh wants there: a PATH with an ssh that
    knows the keys, the hosts, and what DeepSpeed's launcher carries to them."""
    sshd = require("sshd", "openssh-server")
    for name in ("host-key", "key"):
        subprocess.run(
            [require("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    (folder / "known-hosts").write_text(f"{','.join(ADDRESSES)} {(folder / 'host-key.pub').read_text()}")
    (folder / "sshd.conf").write_text(SERVER.format(folder=folder))
    (folder / "ssh.conf").write_text(CLIENT.format(folder=folder))
    for host in pair.hosts:
        host.start(sshd, "-D", "-e", "-f", folder / "sshd.conf", log=folder / "sshd.log")
    ssh = _client(folder)
    for name in ADDRESSES:
        wait_for(lambda name=name: pair.hosts[0].succeeds(ssh, name, "true"), 20)
    return _variables(folder, ssh)


def _client(folder: Path) -> Path:
    """An ssh that knows the keys, for who looks for one on PATH."""
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {require("ssh", "openssh-client")} -F {folder}/ssh.conf "$@"\n')
    ssh.chmod(0o755)
    return ssh


def _variables(folder: Path, ssh: Path) -> dict[str, str]:
    require("pdsh", "pdsh")
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in ADDRESSES))
    (folder / "carried").write_text("DS_ACCELERATOR=cpu\n")
    path = {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    return {**path, "HOSTFILE": str(folder / "hostfile"), "DS_ENV_FILE": str(folder / "carried")}
