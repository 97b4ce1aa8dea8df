"""`lemon run`, `prepare` and `train`: stages of a config."""

import argparse

from pipeline import config
from pipeline.cli.arguments import Commands, path, positive_integer
from pipeline.config.schema import Config
from pipeline.errors import Preempted, UserError, full_disk_explained, writing_to
from pipeline.records.processes import choose_accelerator
from pipeline.training import launcher, preemption
from pipeline.training.launcher import Nodes
from pipeline.training.preemption import StopRequest

HELP = {
    "run": "run every stage of a config; finished stages are skipped, an interrupted one resumes",
    "prepare": "tokenize and pack the text, or store the images, of a config",
    "train": "run one stage, a training or an expansion (also the entry point of workers under torchrun or Slurm)",
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
            _add_nodes(command)


def _add_nodes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--nodes", type=positive_integer, default=1, help="nodes that run this same command (default 1)"
    )
    command.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0")
    command.add_argument("--master-addr", default="127.0.0.1", help="address of node 0")
    command.add_argument("--master-port", type=int, default=29500, help="a free port on node 0")


def _nodes(options: argparse.Namespace) -> Nodes:
    return Nodes(options.nodes, options.node_rank, options.master_addr, options.master_port)


def _load(options: argparse.Namespace) -> Config:
    """The config, once DeepSpeed has been told which accelerator to take."""
    choose_accelerator()
    return config.load(options.config, options.overrides)


def _run(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    with preemption.heard():
        run.run(_load(options), _nodes(options))


def _prepare(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    run.prepare_alone(_load(options))


def _train(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    loaded = _load(options)
    name = options.stage or _only_stage(loaded)
    if launcher.is_worker():
        _work(loaded, name)
    else:
        with preemption.heard():
            run.stage_alone(loaded, name, _nodes(options))


def _only_stage(loaded: Config) -> str:
    names = [stage.name for stage in loaded.stages if stage.kind == "train"]
    if len(names) != 1:
        raise UserError(
            f"config '{loaded.name}' has {len(names)} training stages; choose one with --stage: {', '.join(names)}"
        )
    return names[0]


def _work(loaded: Config, name: str) -> None:
    """Be one worker of a training stage, to its end, or until it is asked to stop."""
    with writing_to(loaded.path, "choose another run folder with folder=…"):
        loaded.path.mkdir(parents=True, exist_ok=True)
        lock = launcher.become_worker(loaded.path)
    request = StopRequest.listening()
    try:
        from pipeline.training import engine, fingerprint, loop

        stage = loaded.training_stage(name)
        with full_disk_explained(loaded.path):
            fingerprint.require_same(loaded, stage)  # under plain torchrun nobody did it before
            try:
                loop.run(loaded, stage, engine.join(), request)
            except Preempted:
                engine.leave(preemption.REQUEUE)
            engine.leave()
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del lock
