"""The training-time door to DeepSpeed: build, step, evaluate, save, load."""

import gc
import io
import logging
import math
import pickle
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime import torch_autocast
from torch import Tensor

from pipeline import checkpoints, models
from pipeline.checkpoints.layouts import require_layout
from pipeline.checkpoints.layouts.zero_format import unsafe
from pipeline.config.number_formats import BY_DEFAULT
from pipeline.config.schema import TrainStage
from pipeline.data import Batch
from pipeline.data.sampler import places
from pipeline.errors import UserError, placed
from pipeline.growth import new_entries
from pipeline.growth.new_entries import NewEntries
from pipeline.optim.optimizers import Muon, Optimizer
from pipeline.optim.rewarm import LEVEL, Ramp
from pipeline.records.stage_facts import OptimizerKernel
from pipeline.rng import derive
from pipeline.training import collectives, compilation, hardware, muon, optimizer_kernel, timeouts
from pipeline.training.compilation import CompileTime
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.device_precisions import require_precision, supported_precisions
from pipeline.training.entry_rates import EntryRates
from pipeline.training.loss_scale import LossScale
from pipeline.training.losses import loss_per_sample, model_inputs, per_sample
from pipeline.training.muon import MuonGate
from pipeline.training.process_group import World
from pipeline.training.save_in_flight import Publication
from pipeline.training.saving import Saving
from pipeline.training.start import require_loadable
from pipeline.training.step_in_flight import StepInFlight, StepResult
from pipeline.training.stopwatch import Stopwatch
from pipeline.training.subject import Trained
from pipeline.training.update_gate import Refuses, UpdateGate

logger = logging.getLogger(__name__)

KERNEL_KEYS = ("fused", "foreach")
"""Of an optimizer's groups, which checkpoints hold: what computes the update."""


def free() -> None:
    """Give back the memory of an engine that was closed; its parts refer to each other."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _nothing() -> None:
    """A GPU's collectives are no time of the host's."""


def _built(spec: Optimizer, groups: list[dict[str, Any]], fused: bool | None) -> torch.optim.Optimizer:
    return muon.build(groups, fused) if isinstance(spec, Muon) else spec.build(groups, fused=fused)


class Engine:
    """One model in training."""

    def __init__(
        self,
        trained: Trained,
        stage: TrainStage,
        world: World,
        seed: int,
        start: Path | None = None,
        kernel: OptimizerKernel | None = None,
    ):
        """`start`: a checkpoint that `load` will be given; its layout must be known before DeepSpeed is built. kernel:
        of the optimizer; None: the fastest."""
        self.stage, self.world, self.seed, self.beside = stage, world, seed, trained.beside
        require_precision(stage, supported_precisions())
        hardware.multiply_in(stage.products)
        universal = start is not None and require_layout(start).load_universal
        self.deepspeed_config = deepspeed_config(stage, world.size, universal=universal)
        logger.debug(f"{stage.name}: DeepSpeed's config: {self.deepspeed_config}")
        self.names = [list(parameters) for _, parameters in trained.groups]
        self.factors = [rule.rate for rule, _ in trained.groups]
        self.fused = (kernel or optimizer_kernel.fastest(stage, world.device.type)) == "fused"
        optimizer, self.hyper = self._optimizer(trained)
        self.deepspeed = self._initialized(trained, optimizer)
        timeouts.set_as_of_all_ranks()
        self.gate = (MuonGate if isinstance(stage.optimizer, Muon) else UpdateGate)(self.deepspeed)
        self.watch = Stopwatch.of(world.device)
        self._end_timing = collectives.timed(self.watch.communicated) if world.device.type == "cpu" else _nothing
        self.loss_scale = LossScale(self.deepspeed, stage.name)
        self._compile_time = CompileTime(self.watch.compiled) if stage.compile is True else None
        self._passes = 0
        self._growths: tuple[NewEntries, ...] = ()
        self.saving = Saving(self.deepspeed, world.rank, world.size, background=stage.save == "background")

    def _optimizer(self, trained: Trained) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
        """The optimizer, and what each of its groups says, by which kernel it computes among that."""
        hyper = [self.stage.optimizer.hyper(rule) for rule, _ in trained.groups]
        grouped = zip(trained.groups, hyper, strict=True)
        groups = [{"params": list(parameters.values()), **said} for (_, parameters), said in grouped]
        optimizer = _built(self.stage.optimizer, groups, fused=self.fused or None)
        kernels = ({key: group[key] for key in KERNEL_KEYS if key in group} for group in optimizer.param_groups)
        return optimizer, [said | kernel for said, kernel in zip(hyper, kernels, strict=True)]

    def _initialized(self, trained: Trained, optimizer: torch.optim.Optimizer) -> deepspeed.DeepSpeedEngine:
        """DeepSpeed's engine, before its first step."""
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False  # else this one reduces as an earlier engine of the process
        if self.stage.compile is True:
            compilation.compile_layers(trained.layers, self.stage.zero_stage)
        with redirect_stdout(io.StringIO()):  # BF16_Optimizer prints the memory that it takes
            engine, *_ = deepspeed.initialize(
                model=trained.module, optimizer=optimizer, config=self.deepspeed_config, dist_init_required=False
            )
        for state in optimizer.state.values():  # of stage 0 in bf16 alone, by a step on gradients of zero
            if isinstance(state.get("step"), Tensor):
                state["step"].zero_()
        return engine

    @property
    def micro_batch(self) -> int:
        return int(self.deepspeed_config["train_micro_batch_size_per_gpu"])

    @property
    def accumulation(self) -> int:
        return int(self.deepspeed_config["gradient_accumulation_steps"])

    @property
    def places(self) -> range:
        """Of this rank's micro-batches in the whole batch."""
        return places(self.accumulation * self.world.size, self.world.rank, self.world.size)

    def step(
        self, batches: Iterable[Batch], number: int, rate: float, stop: bool = False, refuses: Refuses | None = None
    ) -> StepResult:
        """`begin_step`, and wait for its values."""
        return self.begin_step(batches, number, rate, stop, refuses).finish()

    def begin_step(
        self, batches: Iterable[Batch], number: int, rate: float, stop: bool = False, refuses: Refuses | None = None
    ) -> StepInFlight:
        """Give the device one update from this rank's micro-batches, which is left out where it is refused.

        refuses: asked before the update, for which the loss of all ranks must be waited for; None: without waiting."""
        self.deepspeed.train()
        for group, factor in zip(self.deepspeed.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        total, sums = torch.zeros((), device=self.world.device, dtype=torch.float64), None
        self.gate.ask(None)
        self.watch.begin_step()
        for place, batch in zip(self.places, batches, strict=True):
            self.watch.queued("data")
            # Masks belong to the micro-batch, whichever rank it comes to; another micro_batch draws others.
            torch.manual_seed(derive(self.seed, "dropout", self.stage.name, number, place))
            losses = loss_per_sample(*self._logits(batch))
            self.watch.queued("forward")
            self.deepspeed.backward(losses.mean())
            total += losses.detach().double().mean()
            self.watch.queued("backward")
            if refuses and place == self.places[-1]:
                sums = self._over_ranks(total, stop)
                self.gate.ask(partial(self._refused, refuses, sums))
            with self.loss_scale.of_a_step():
                self.deepspeed.step()
            self.gate.settle()
            self.watch.queued("optimizer")
        sums = self._over_ranks(total, stop) if sums is None else sums
        self.saving.reserve()
        self.watch.lap("optimizer")
        micro_batches = len(self.places) * self.world.size
        return StepInFlight(sums, self.gate.norm, micro_batches, self.watch, self.gate.told)

    def _over_ranks(self, total: Tensor, stop: bool) -> Tensor:
        """Sums over all ranks, (2,): of their losses' totals, and of those that want to stop."""
        sums = torch.stack([total, torch.full_like(total, float(stop))])
        dist.all_reduce(sums)
        self.watch.queued("communication")
        return sums

    def _refused(self, refuses: Refuses, sums: Tensor) -> bool:
        loss = sums[0].item() / (len(self.places) * self.world.size)
        return refuses(loss, self.gate.told(float(self.gate.norm)))

    def evaluate(self, batches: Iterable[Batch], kind: str) -> dict[str, float]:
        """Mean loss over the evaluation set of all ranks, with perplexity for text and top-1 accuracy for images."""
        self.deepspeed.eval()
        sums = torch.zeros(3, device=self.world.device, dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                sums += torch.stack(per_sample(*self._logits(batch)))[:, : batch.valid].double().sum(1)
        dist.all_reduce(sums)
        loss, hits = (sums[:2] / sums[2]).tolist()
        return {"eval_loss": loss, **({"perplexity": math.exp(min(loss, 700.0))} if kind == "text" else {"top1": hits})}

    def work(self) -> int:
        """Another number as long as this rank computes or compiles, or its save is being written."""
        compiling = self._compile_time.moved() if self._compile_time else 0
        return self._passes + compiling + self.saving.moved()

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits, and labels on the device."""
        self._passes += 1
        inputs = model_inputs(batch, self.deepspeed.module, self.world.device)
        return self.deepspeed(**inputs).logits, batch.labels.to(self.world.device)

    def save(self, folder: Path, step: int, facts: dict[str, Any], **how: Any) -> Path:
        """Begin to save `folder/step-0000500`, which `saving.finish` waits for; all ranks together. how: `before`,
        `behind` and `algorithm` of its `Publication`."""
        final = folder / f"step-{step:07d}"
        layout = checkpoints.CheckpointLayout.of(self.stage, self.world.size)
        publication = Publication(final, {**facts, **layout.as_json(), "step": step}, **how)
        kept = {"group_names": self.names, **new_entries.written(self._growths)}
        self.saving.save(publication, dict(self.beside()), client_state=kept)
        return final

    def load(self, folder: Path, ramp: Ramp = LEVEL) -> None:
        """Load weights and optimizer of a checkpoint in the engine's own layout. ramp: of the rate of new entries.
        Raises UserError when it is not, and where there is a ramp and no new entry."""
        require_loadable(folder, self.stage, self.world.size)
        try:
            with redirect_stdout(io.StringIO()):  # BF16_Optimizer prints what it loads
                loaded, kept = self.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
        except pickle.UnpicklingError as error:
            raise unsafe(folder, error) from error
        if loaded is None:
            raise UserError(f"{folder}: DeepSpeed cannot load it; check the folder with lemon check")
        self._repair()
        self.loss_scale.settle()
        with placed(str(folder)):
            self._treat_new_entries(new_entries.read(kept), ramp)

    def _treat_new_entries(self, growths: tuple[NewEntries, ...], ramp: Ramp) -> None:
        """Raises UserError where there is a ramp, and nothing for it, and where they are of another model."""
        if ramp is not LEVEL and not (growths and growths[-1].kept):
            raise UserError("no entry of its optimizer state is new; leave rewarm out, or expand with asymmetric state")
        if growths:
            module = self.deepspeed.module
            for growth in growths:
                growth.require_fitting(models.architecture_of(module.config))
            published = models.published_names(module.config)
            named = {published[name]: parameter for name, parameter in module.named_parameters()}
            EntryRates(self.deepspeed, self.stage.optimizer, growths, ramp, named)
        self._growths = growths

    def close(self) -> None:
        """Let go of model and optimizer, whose hooks would keep all of it until the process ends; under ZeRO-3 some
        stay when DeepSpeed has removed its own, so nothing is left that they could keep. What this process computes
        behind the stage, such as an expansion, does not multiply as the stage did."""
        hardware.multiply_in(BY_DEFAULT)
        self.saving.close()
        self._end_timing()
        if self._compile_time:
            self._compile_time.close()
        parameters = list(self.deepspeed.module.parameters())
        optimizer = self.deepspeed.optimizer
        self.deepspeed.destroy()
        compilation.restore_linear()
        for parameter in parameters:
            parameter.data = parameter.data.new_empty(0)
        for part in (*parameters, optimizer, self.deepspeed):
            vars(part).clear()

    def _repair(self) -> None:
        """Restore what loading may have overwritten: the bound of the gradient norm, and each group's own
        hyper-parameters (stage 3 gives all groups the first's when it loads a universal checkpoint, and lets them share
        one step tensor, which then advances once per group), and the kernel, which torch takes from the checkpoint; a
        fused one wants step counts on its device."""
        if hasattr(self.deepspeed.optimizer, "clip_grad"):
            self.deepspeed.optimizer.clip_grad = self.stage.optimizer.clip
        inner = getattr(self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer)
        for parameter, state in inner.state.items():
            if isinstance(state.get("step"), Tensor):
                device = parameter.device if self.fused else state["step"].device
                state["step"] = state["step"].clone().to(device)
        for optimizer in {id(o): o for o in (inner, self.deepspeed.optimizer)}.values():
            for group, hyper in zip(optimizer.param_groups, self.hyper, strict=False):
                group.update(hyper)
