"""`lemon run`, `prepare` and `train`: stages of a config, in processes of our own or as one of another launcher's."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NoReturn

from pipeline import config
from pipeline.cli import dry_run_options
from pipeline.cli.arguments import Commands, add_local_rank, node_counts, path
from pipeline.cli.imports import imports
from pipeline.cli.output import exit_code
from pipeline.config.schema import Config
from pipeline.durations import seconds
from pipeline.errors import Preempted, UserError, full_disk_explained, writing_to
from pipeline.records import run_folder
from pipeline.records.processes import PARENT, choose_accelerator
from pipeline.training import environment, launcher, preemption
from pipeline.training.environment import Launched
from pipeline.training.launcher import Nodes, Start
from pipeline.training.preemption import StopRequest

logger = logging.getLogger(__name__)

ALLOWABLE = ("precision", "deepspeed", "gradient_sums", "matmul_precision", "attention", "compile")
HELP = {
    "run": "run every stage of a config; finished stages are skipped, an interrupted one resumes",
    "prepare": "tokenize and pack the text, or store the images, of a config",
    "train": "run one stage, a training or an expansion (a training, where torchrun, srun or mpirun start the workers)",
}


def add_parsers(commands: Commands) -> None:
    handlers = {"run": _run, "prepare": _prepare, "train": _train}
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(handler=handlers[name])
        command.add_argument(
            "config", type=path, metavar="CONFIG", help="a YAML config, such as configs/quickstart/bert.yaml"
        )
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="dotted overrides; stages by name: stages.small.batch=32"
        )
        if name == "train":
            command.add_argument("--stage", help="which stage (default: the only training stage)")
        if name != "prepare":
            add_nodes(command)
            _add_allow(command)
        if name == "run":
            dry_run_options.add(command)
        add_local_rank(command)


def add_nodes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--nodes",
        type=node_counts,
        default=(1, 1),
        metavar="N or MIN:MAX",
        help="nodes that run this same command (default 1); MIN:MAX goes on with MIN of them where others do not come",
    )
    command.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0")
    command.add_argument("--master-addr", default="127.0.0.1", help="address of node 0")
    command.add_argument("--master-port", type=int, default=29500, help="a free port on node 0")


def _add_allow(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow",
        action="append",
        choices=ALLOWABLE,
        default=[],
        help="go on with a begun training stage in another number format, with another attention, or compiled where "
        "it was not; the change is recorded",
    )


def start_of(options: argparse.Namespace) -> Start:
    """How this command was started: by --nodes, by another launcher, or alone. Raises UserError."""
    fewest, most = getattr(options, "nodes", (1, 1))
    if most > 1:
        _refuse_workers()
        return Nodes(
            most, options.node_rank, options.master_addr, options.master_port, None if fewest == most else fewest
        )
    if hasattr(options, "local_rank"):
        os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    launched = environment.recognise()
    if launched is None:
        return Nodes()
    if launched.first and PARENT not in os.environ:
        logger.info(launched.line)
    if launched.names_nodes:
        return Nodes(launched.world_size, launched.rank, launched.master_address, launched.master_port)
    launched.export()
    return launched


def _allowing(options: argparse.Namespace) -> Start:
    """The same, with what a begun stage may go on with others of."""
    return replace(start_of(options), allowed=frozenset(options.allow))


def _refuse_workers() -> None:
    """Raises UserError where each of the workers that --nodes starts would start as many again. srun and mpirun may
    well start one process a node, each with its --node-rank."""
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        raise UserError(
            f"--nodes starts workers, and this process is one already (RANK={os.environ['RANK']} in the environment); "
            "leave out --nodes, or the other launcher"
        )


def load(options: argparse.Namespace) -> Config:
    """The config, once DeepSpeed has been told which accelerator to take."""
    choose_accelerator()
    return config.load(options.config, options.overrides)


def _run(options: argparse.Namespace) -> None:
    dry_run_options.require_fitting(options)
    start = _allowing(options)
    if options.dry_run:
        dry_run_options.show(load(options), start, options)
        return
    do(start, lambda: _stages(load(options), start))


def _stages(loaded: Config, start: Start) -> None:
    with imports():
        from pipeline.runs import run

    run.run(loaded, start)


def _prepare(options: argparse.Namespace) -> None:
    start = start_of(options)
    do(start, lambda: _data(load(options), start))


def _data(loaded: Config, start: Start) -> None:
    with imports():
        from pipeline.runs import run

    run.prepare_alone(loaded, start)


def do(start: Start, work: Callable[[], None]) -> None:
    """Have another launcher's process do its part and end at once, without Python's teardown: after a failure peers may
    wait for it, after a success gloo's threads may abort it (see process_group.leave)."""
    if isinstance(start, Launched):
        StopRequest.of_this_process()
        launcher.take_over_log_level()
        _end(work)
    with preemption.heard():
        work()


def _end(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        code = exit_code(work)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(options: argparse.Namespace) -> None:
    start, loaded = _allowing(options), load(options)
    name = options.stage or only_stage(loaded)
    if isinstance(start, Launched):
        _work(loaded, name, start)
    else:
        with preemption.heard():
            _stage(loaded, name, start)


def _stage(loaded: Config, name: str, start: Start) -> None:
    with imports():
        from pipeline.runs import run

    run.stage_alone(loaded, name, start)


def only_stage(loaded: Config) -> str:
    names = [stage.name for stage in loaded.stages if stage.kind == "train"]
    if len(names) != 1:
        raise UserError(
            f"config '{loaded.name}' has {len(names)} training stages; choose one with --stage: {', '.join(names)}"
        )
    return names[0]


def _work(loaded: Config, name: str, start: Launched) -> None:
    """Be one worker of a training stage, to its end, or until it is asked to stop, or its time is up."""
    preemption.set_deadline(None if loaded.max_time is None else seconds(loaded.max_time))
    with writing_to(loaded.path, "choose another run folder with folder=…"):
        loaded.path.mkdir(parents=True, exist_ok=True)
        lock = launcher.become_worker(loaded.path)
    request = StopRequest.of_this_process()
    alone = PARENT not in os.environ and start.first  # else the command of our own that started it has locked the run
    try:
        with imports():
            from pipeline.expansion.fit import subject
            from pipeline.runs import trainings
            from pipeline.training import fingerprint, loop, process_group

        stage = loaded.training_stage(name)
        with run_folder.claimed(loaded.path) if alone else nullcontext(), full_disk_explained(loaded.path):
            fingerprint.require_same(loaded, stage, start.allowed)  # under plain torchrun nobody did it before
            if PARENT not in os.environ:
                trainings.reshard_start(loaded, stage, start)
            try:
                with request.joining():
                    world = process_group.join(loaded.hang)
                loop.run(subject(loaded, stage), world, request)
            except Preempted:
                process_group.leave(preemption.REQUEUE)
            process_group.leave(preemption.REQUEUE if request.asked else 0)  # behind the last step nobody has heard it
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del lock
