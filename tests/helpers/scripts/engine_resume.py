"""Engines that are saved and go on, beside one that is not interrupted, and the memory in which a model is built: what
every worker of these tests runs."""

import gc
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.config.schema import TrainStage
from pipeline.records.processes import give_back_freed_memory
from pipeline.training import partitioned
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, model_config, stage


def engine_of(job: dict, world: World, seed: int, start: Path | None = None) -> Engine:
    """job: family, stage (its fields), sizes (that are to be others), built (how, of ZeRO-3: one of `BUILDS`)."""
    torch.set_num_threads(1)
    fields = stage(**{"micro_batch": BATCH // world.size // 2, **job["stage"]})
    config = model_config(job["family"], **job.get("sizes", {}))
    model = BUILDS[job.get("built", "whole")](config, seed, fields)
    return Engine(of_model(model, fields.activation_checkpointing), fields, world, seed=0, start=start)


def _whole(config: PretrainedConfig, seed: int, stage: TrainStage) -> PreTrainedModel:
    return models.build(config, seed)


def _filled(config: PretrainedConfig, seed: int, stage: TrainStage) -> PreTrainedModel:
    """With the weights of a whole model, by their published names."""
    held = dict(models.build(config, seed).named_parameters())
    names = {row.name: row.module_name for row in models.architecture_of(config).rows()}
    return partitioned.filled(config, lambda name: held[names[name]], stage)


def _drawn(config: PretrainedConfig, seed: int, stage: TrainStage) -> PreTrainedModel:
    """With weights that are made when they are asked for."""
    architecture = models.architecture_of(config)
    shapes = {row.name: architecture.shape(row) for row in architecture.rows()}
    return partitioned.filled(config, lambda name: torch.ones(shapes[name]), stage)


def _overwritten(config: PretrainedConfig, seed: int, stage: TrainStage) -> PreTrainedModel:
    """With the weights of a whole model in the place of others, but for a bias that is drawn for it too: zeros."""
    held = dict(models.build(config, seed).named_parameters())
    names = {row.name: row.module_name for row in models.architecture_of(config).rows()}
    kept = {name: name for name in names if not name.endswith("bias")}
    made = partitioned.initialized(config, seed + 1, stage)
    return partitioned.overwritten(made, lambda name: held[names[name]], kept)


BUILDS = {
    "whole": _whole,
    "initialized": partitioned.initialized,
    "filled": _filled,
    "drawn": _drawn,
    "overwritten": _overwritten,
    "to load": lambda config, seed, stage: partitioned.to_load(config, stage),
}


def losses(job: dict, engine: Engine, world: World, first: int, last: int) -> list[float]:
    """Of the steps `first` to `last`, the one before it the last."""
    micro = engine.micro_batch
    return [
        engine.step([batch(job["family"], step, place * micro, micro) for place in engine.places], step, rate=1e-3)[0]
        for step in range(first, last)
    ]


def resumed(job: dict) -> dict:
    """The losses of `steps` steps, `saved` of them before a save to `folder`, and those of an engine of other weights
    which loads it. job: `again`, fields of the stage that goes on, where they are others; `place`, what it loads, where
    it is something else; `steps` and `saved`."""
    world = join()
    engine = engine_of(job, world, seed=5)
    whole = losses(job, engine, world, 0, job["saved"])
    saved = engine.save(Path(job["folder"]), job["saved"], {"kind": "train", "provenance": {}})
    engine.saving.finish()
    whole += losses(job, engine, world, job["saved"], job["steps"])
    engine.close()
    dist.barrier()
    if job.get("built", "whole") != "whole":
        job = {**job, "built": "to load"}
    return {"whole": whole, "behind": loaded({**job, "place": str(saved)})}


def scaled(job: dict) -> list[list]:
    """Of every step the loss, the gradient norm, the loss scale behind it, whether it overflowed, and whether the
    weights are as before. job: as of `engine_of`, steps; place: what is loaded first, save: a folder to save to in the
    end, first: the number of the first step."""
    world, place = join(), Path(job["place"]) if "place" in job else None
    engine = engine_of(job, world, seed=6 if place else 5, start=place)
    if place:
        engine.load(place)
    rows = []
    for step in range(job.get("first", 0), job["steps"]):
        micro, before = engine.micro_batch, _weights(engine)
        parts = [batch(job["family"], step, each * micro, micro) for each in engine.places]
        loss, norm, _ = engine.step(parts, step, rate=1e-3)
        overflowed = engine.loss_scale.overflowed
        rows.append([loss, norm, engine.loss_scale.current, overflowed, torch.equal(before, _weights(engine))])
    if "save" in job:
        engine.save(Path(job["save"]), job["steps"], {"kind": "train", "provenance": {}})
        engine.saving.finish()
    engine.close()
    dist.barrier()
    return rows


def _weights(engine: Engine) -> torch.Tensor:
    """What this rank holds of them."""
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.deepspeed.module.parameters()]
    return torch.cat([tensor.detach().flatten() for tensor in held])


def loaded(job: dict) -> list[float]:
    """The losses behind step `saved` of an engine that has loaded `place`."""
    world, place = join(), Path(job["place"])
    job = {**job, "stage": job["stage"] | job.get("again", {})}
    engine = engine_of(job, world, seed=6, start=place)
    engine.load(place)
    found = losses(job, engine, world, job["saved"], job["steps"])
    engine.close()
    return found


def peak(job: dict) -> float:
    """The most memory that a model took while it was built, as a share of its float32 weights, of the rank that took
    most. job: as of `engine_of`."""
    join()
    config, fields = model_config(job["family"], **job["sizes"]), stage(micro_batch=1, **job["stage"])
    gc.collect()
    give_back_freed_memory()
    before, seen, built = _anonymous(), [0], threading.Event()

    def look() -> None:
        while not built.wait(0.002):
            seen.append(_anonymous())

    watching = threading.Thread(target=look)
    watching.start()
    model = BUILDS[job["built"]](config, 5, fields)
    built.set()
    watching.join()
    most = torch.tensor((max(seen) - before) / (4 * models.architecture_of(config).parameters))
    del model
    gc.collect()
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return float(most)


def _anonymous() -> int:
    """Bytes of this process's memory that is no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
