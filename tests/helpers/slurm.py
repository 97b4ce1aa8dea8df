"""Slurm of Debian's packages on two hosts (tests/helpers/hosts.py): the controller on the first, a daemon on each."""

import os
import re
from pathlib import Path

from tests.helpers.cli import environment
from tests.helpers.hosts import ADDRESSES, Host, Pair
from tests.helpers.required import require
from tests.helpers.waiting import wait_for

CONFIGURATION = """
ClusterName=two
SlurmctldHost={first}
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire={requeue_after}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
ReturnToService=2
NodeName={names} CPUs=1 State=UNKNOWN
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
REQUEUE_AFTER = 10
"""Seconds that Slurm lets pass before a requeued job starts; by default 120."""
PACKAGES = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}


class Slurm:
    """A cluster that is up."""

    def __init__(self, host: Host, environment: dict[str, str]):
        self._host, self._environment = host, environment

    def command(self, *command: object) -> str:
        """What one of Slurm's programs prints."""
        return self._host.run(*command, env=self._environment)

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, …"""
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "show", "job", number)))

    def idle_nodes(self) -> int:
        """Nodes that wait for a job."""
        try:
            return int(self.command("sinfo", "--noheader", "--states=idle", "--format=%D").split()[0])
        except (AssertionError, IndexError):  # the controller does not answer yet, or knows no such node
            return 0


def start_slurm(pair: Pair, folder: Path) -> Slurm:
    """A cluster whose two nodes are the hosts; its daemons end with them."""
    programs = {name: require(name, package) for name, package in PACKAGES.items()}
    settings, first, log = _settings(folder), pair.hosts[0], folder / "daemons.log"
    for host in pair.hosts:
        munged = (programs["munged"], "--foreground", "--force", f"--key-file={folder / 'munge.key'}")
        files = (f"--log-file={folder}/munged-{host.name}.log", f"--seed-file={folder}/munge-{host.name}.seed")
        host.start(*munged, *files, log=log)
    first.start(programs["slurmctld"], "-D", log=log, **settings)
    for host in pair.hosts:
        host.start(programs["slurmd"], "-D", log=log, **settings)
    cluster = Slurm(first, environment(**settings))
    wait_for(lambda: cluster.idle_nodes() == len(pair.hosts), 60)
    return cluster


def _settings(folder: Path) -> dict[str, str]:
    """The variable that names the configuration, which is written here."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    file = folder / "slurm.conf"
    names = ",".join(ADDRESSES)
    first = next(iter(ADDRESSES))
    file.write_text(CONFIGURATION.format(first=first, names=names, folder=folder, requeue_after=REQUEUE_AFTER))
    return {"SLURM_CONF": str(file)}
