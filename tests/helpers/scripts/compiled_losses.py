"""Train a tiny model through our engine with eager layers, then with compiled ones."""

from typing import Any

import torch
from torch._dynamo.utils import counters

from pipeline import models
from pipeline.data import Batch
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage


def both(job: dict) -> dict[str, dict[str, Any]]:
    """By `eager` and `compiled`: the loss of each step and that of an evaluation behind them, the seconds of compiling
    by the stopwatch, how many graphs and breaks dynamo counted, and whether the linear function is torch's own in
    training and behind it. job: family, sizes (of its model, where they are others), stage (its fields), steps."""
    world = join()
    torch.set_num_threads(1)
    return {name: _trained(job, world, name == "compiled") for name in ("eager", "compiled")}


def _trained(job: dict, world: World, compiled: bool) -> dict[str, Any]:
    counters.clear()
    family, fields = job["family"], stage(**job["stage"], compile=compiled)
    trained = of_model(models.build(model_config(family, **job["sizes"]), seed=5), fields.activation_checkpointing)
    engine = Engine(trained, fields, world, seed=0)
    losses = [engine.step(_parts(family, step, world), step, rate=1e-3)[0] for step in range(job["steps"])]
    losses.append(engine.evaluate(_parts(family, 0, world)[:1], models.family(family).data)["eval_loss"])
    seconds, graphs = engine.watch.take().get("compile", 0.0), counters["stats"].get("unique_graphs", 0)
    linear = [_linear_is_torchs()]
    engine.close()
    told = {"losses": losses, "seconds": seconds, "graphs": graphs, "breaks": sum(counters["graph_break"].values())}
    return {**told, "linear": [*linear, _linear_is_torchs()]}


def _linear_is_torchs() -> bool:
    return torch.nn.functional.linear is torch._C._nn.linear


def _parts(family: str, step: int, world: World) -> list[Batch]:
    """This rank's micro-batches."""
    micro = BATCH // world.size // ROUNDS
    return [batch(family, step, (part * world.size + world.rank) * micro, micro) for part in range(ROUNDS)]
