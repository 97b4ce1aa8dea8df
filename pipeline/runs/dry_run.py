"""`lemon run CONFIG --dry-run`: what a run would do and need, checked as a run checks it; nothing is written.

The cluster is the one that the options describe, not the machine that is asked.
"""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints import publish
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.config import dump
from pipeline.config.schema import Config, TrainStage
from pipeline.data.inventory import Inventory
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.runs import preflight, stage_needs
from pipeline.runs.stage_needs import Cluster
from pipeline.training.environment import Launched
from pipeline.training.launcher import Start
from pipeline.training.micro_batches import as_begun, size_of
from pipeline.training.start import require_whole_facts


@dataclass(frozen=True)
class DryRun:
    """What a run would do and need. content: all of it, JSON-able."""

    config: Config
    content: dict[str, Any]


def dry_run(config: Config, start: Start, arguments: Sequence[str]) -> DryRun:
    """Check a config as a run does, and say what would follow. arguments: of the command, behind `lemon run`. Raises
    UserError with what a run would say."""
    cluster = Cluster.of(config, start)
    preflight.before_data(config, [cluster.ranks], start.allowed)
    notes = [*_notes(config, cluster), *_settled_later(config, cluster), *_checkpoints(config, cluster)]
    needs = stage_needs.of_run(config, cluster)
    there = needs.there
    disk = {"needed": needs.disk, "free": _free(config.path)}
    if disk["needed"] > disk["free"]:
        notes.append(f"the checkpoints need {amount(disk['needed'])} of disk, {amount(disk['free'])} are free")
    content = {
        "name": config.name,
        "folder": str(config.path),
        "config": config.model_dump(mode="json"),
        "cluster": {**asdict(cluster), "ranks": cluster.ranks},
        "launch": list(_launch(cluster, start, arguments)),
        "data": {"facts": _facts(there), "prepared": there.prepared, "lines": dict(there.lines)},
        "stages": needs.stages,
        "flops": needs.flops,
        "disk": disk,
        "notes": notes,
    }
    return DryRun(config, content)


def _notes(config: Config, cluster: Cluster) -> Iterator[str]:
    """What of this machine would be another thing on the cluster's."""
    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    if config.processes == "auto":
        yield f"processes: auto is {cluster.processes} on this machine; name the number for another one"
    elif gpus and cluster.processes > gpus:
        yield f"processes {cluster.processes}: this machine has {gpus} GPU(s), and would refuse to train so many"


def _settled_later(config: Config, cluster: Cluster) -> Iterator[str]:
    """What is found out only when a stage begins."""
    trained = [stage for stage in config.stages if isinstance(stage, TrainStage)]
    for stage in (as_begun(stage, StageFolder(config.path / stage.name)) for stage in trained):
        if stage.micro_batch == "auto":
            most = size_of(stage, cluster.ranks)
            yield f"stages.{stage.name}.micro_batch: auto: shown is {most}, the most; as it begins, what fits is found"


def _checkpoints(config: Config, cluster: Cluster) -> Iterator[str]:
    """Check what the stages will load, as far as it is there. A run sets a damaged checkpoint aside; this tells it."""
    readable = []
    for stage in config.stages:
        newest = publish.newest(StageFolder(config.path / stage.name).checkpoints)
        try:
            if newest:
                require_whole_facts(newest)
            readable.append(stage)
        except UserError as error:
            yield f"{error}; a run would go on from an earlier one"
    preflight.checkpoints_fit(config, readable, cluster.ranks)


def _facts(there: Inventory) -> dict[str, Any]:
    facts = {key: value for key, value in there.data.facts.items() if key != "class_names"}
    return facts if there.counted else facts | {"training": None}


def _launch(cluster: Cluster, start: Start, arguments: Sequence[str]) -> Iterator[str]:
    """What starts the run: a command for each node."""
    command = ["lemon", "run", *arguments, *(f"--allow={setting}" for setting in sorted(start.allowed))]
    if isinstance(start, Launched) or cluster.nodes == 1:
        yield shlex.join(command)
        return
    for rank in range(cluster.nodes):
        place = ["--nodes", start.words, "--node-rank", rank, "--master-addr", start.address]
        yield shlex.join([*command, *map(str, place), "--master-port", str(start.port)])


def _free(folder: Path) -> int:
    """Bytes on the disk that the folder will lie on."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def resolved(run: DryRun) -> str:
    """The config with every default, as YAML."""
    return dump(run.config)
