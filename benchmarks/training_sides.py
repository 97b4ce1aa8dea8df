"""The sides of training_speed.py: each trains the same model on the same data, so many steps at every turn."""

import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

ENDLESS = 1_000_000


VOCABULARY = "vocab.txt"


@dataclass(frozen=True)
class Shape:
    """A model and its batch, over all ranks. vocabulary: of text, as many pieces as a published tokenizer has; 0: 4,096
    that are learned."""

    family: str
    layers: int
    hidden: int
    heads: int
    batch: int
    block: int = 0
    vocabulary: int = 0
    size: int = 0
    patch: int = 0


@dataclass(frozen=True)
class Job:
    """What a process does. precision: bf16, fp32, or medium: fp32 with products in less. keys: more of lemon's."""

    side: str
    shape: Shape
    precision: str
    steps: int
    zero_stage: int
    folder: str
    keys: tuple[str, ...]

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16"

    @property
    def matmul_precision(self) -> str:
        return "medium" if self.precision == "medium" else "highest"


class Turns:
    """Steps between two words of the parent."""

    def __init__(self, pipe: Connection, steps: int):
        self.pipe, self.steps, self.count, self.begun = pipe, steps, 0, 0.0

    def before_step(self) -> None:
        if self.count % self.steps == 0:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if self.count:
                self.pipe.send(time.perf_counter() - self.begun)
            if self.pipe.recv() is None:
                os._exit(0)
            self.begun = time.perf_counter()
        self.count += 1


def work(job: Job, rank: int, ranks: int, port: int, pipe: Connection) -> None:
    """Be one rank of a side, until the parent says that it is enough."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    SIDES[job.side](job, pipe).train()


class Side:
    """One rank of a side."""

    def __init__(self, job: Job, pipe: Connection):
        self.job, self.pipe, self.turns = job, pipe, Turns(pipe, job.steps)

    def train(self) -> None:
        """Tell the parent the facts of the side, then make steps without end."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, job: Job, ranks: int) -> None:
        """Before any process is started."""


def pieces(count: int) -> list[str]:
    """So many for WordPiece: characters and the words of the embedded text, the most frequent first; the rest is
    unused, as in published vocabularies."""
    from pipeline.data import embedded

    words = Counter(word for text in embedded.documents() for word in re.findall(r"[a-z]+|[^\sa-z]", text.lower()))
    characters = sorted({character for word in words for character in word})
    known = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters])
    known |= dict.fromkeys(f"##{character}" for character in characters)
    known |= dict.fromkeys(word for word, _ in words.most_common())
    known |= dict.fromkeys(f"[unused{number}]" for number in range(count))
    return list(known)[:count]


class Lemon(Side):
    """A stage of a config, as `lemon run` trains it; a twin of `lemon` differs in a key, in a folder of its own."""

    @staticmethod
    def folder(job: Job) -> Path:
        return Path(job.folder) / ("run" if job.side not in TWINS else job.side)

    @staticmethod
    def config(job: Job) -> Any:
        from pipeline.config.schema import Config

        shape = job.shape
        pieces = (
            {"kind": "wordpiece", "path": f"{job.folder}/{VOCABULARY}"} if shape.vocabulary else {"vocab_size": 4096}
        )
        text = {"kind": "text", "block": shape.block, "tokenizer": pieces, "evaluation_blocks": 64}
        images = {"kind": "images", "size": shape.size, "channels": 1, "evaluation_images": 64}
        sizes = {"family": shape.family, "layers": shape.layers, "hidden": shape.hidden, "heads": shape.heads}
        cadence = dict.fromkeys(("evaluate_every", "save_every"), f"{ENDLESS} steps")
        stage = {"kind": "train", "name": "stage", "model": "model", "batch": shape.batch, "zero_stage": job.zero_stage}
        schedule = {"peak": 1e-4, "horizon": f"{ENDLESS} steps"}
        keys = {"precision": "bf16" if job.bf16 else "fp32", "matmul_precision": job.matmul_precision}
        keys |= dict(each.split("=", 1) for each in (*job.keys, *TWINS.get(job.side, ())))
        return Config.model_validate(
            {
                "name": "speed",
                "folder": str(Lemon.folder(job)),
                "hang": {"watch": False},
                "data": text if shape.block else images,
                "models": {"model": sizes | ({"patch": shape.patch} if shape.patch else {})},
                "stages": [{**stage, **cadence, **keys, "schedule": schedule}],
            }
        )

    @classmethod
    def prepare(cls, job: Job, ranks: int) -> None:
        from pipeline.runs import run

        if job.shape.vocabulary:
            Path(job.folder, VOCABULARY).write_text("\n".join(pieces(job.shape.vocabulary)))
        run.prepare_alone(cls.config(job))
        for twin in TWINS:
            folder = cls.folder(replace(job, side=twin))
            folder.mkdir()
            (folder / "data").symlink_to(cls.folder(job) / "data")

    def train(self) -> None:
        from pipeline.training import loop
        from pipeline.training.preemption import StopRequest
        from pipeline.training.process_group import join
        from pipeline.training.subject import WholeModel

        begin_step, turns, tell = loop.Loop._begin_step, self.turns, self._tell

        def step(running: Any, *arguments: Any) -> Any:
            if not turns.count:
                tell(running)
            turns.before_step()
            return begin_step(running, *arguments)

        setattr(loop.Loop, "_begin_step", step)  # noqa: B010
        config = self.config(self.job)
        loop.run(WholeModel(config, config.stages[0]), join(config.hang), StopRequest())

    def _tell(self, running: Any) -> None:
        from pipeline.training.hardware import describe

        settings = running.plan.folder.facts.settings if running.world.first else None
        self.pipe.send(
            {
                "device": describe(running.world.device.type),
                "flops": running.plan.stage.batch * running.plan.cost.train,
                "peak": running.peak.flops,
                "attention": getattr(settings, "attention", "sdpa"),
                "compile": getattr(settings, "compile", False),
            }
        )


class Bare(Side):
    """lemon's engine in a bare loop: DeepSpeed's calls and the batches, nothing else."""

    def train(self) -> None:
        from pipeline.training.process_group import join

        world = join()
        step = self._step(world)
        self.pipe.send({})
        for batches in self._batches(world):
            self.turns.before_step()
            step(batches)

    def _step(self, world: Any) -> Callable[[list[Any]], None]:
        engine = self._engine(world)

        def step(batches: list[Any]) -> None:
            for batch in batches:
                engine.backward(loss_of(engine, batch, world.device))
                engine.step()

        engine.train()
        return step

    def _engine(self, world: Any) -> Any:
        from pipeline.training.engine import Engine

        plan = self._plan()
        begun = plan.subject.begun(plan.model, None, plan.stage.attention)
        return Engine(begun, plan.stage, world, seed=0).deepspeed

    def _plan(self) -> Any:
        from pipeline.training.stage import plan_training

        config = Lemon.config(self.job)
        return plan_training(config, config.stages[0])

    def _batches(self, world: Any) -> Iterator[list[Any]]:
        from pipeline.data import open_prepared, train_batches

        config, shape = Lemon.config(self.job), self.job.shape
        ranks = {"rank": world.rank, "world": world.size, "micro_batch": shape.batch // world.size}
        ranks["device"] = world.device
        data = open_prepared(config.path / "data")
        for batch in train_batches(data, config.data, 0, batch=shape.batch, first_step=0, **ranks):
            yield [batch]


def loss_of(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
    """The mean cross-entropy in fp32, as lemon computes it."""
    from pipeline.training.losses import loss_per_sample

    inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
    return loss_per_sample(model(**inputs).logits, batch.labels.to(device, non_blocking=True)).mean()


class Plain(Bare):
    """PyTorch alone: DistributedDataParallel, and an optimizer over fp32 master weights."""

    def _step(self, world: Any) -> Callable[[list[Any]], None]:
        from pipeline.training.compilation import compile_layers

        torch.set_float32_matmul_precision(self.job.matmul_precision)
        plan = self._plan()
        begun = plan.subject.begun(plan.model, None, plan.stage.attention)
        if plan.stage.compile is True:
            compile_layers(begun.layers, zero_stage=0)
        model = begun.module.to(world.device)
        if self.job.bf16:
            model = model.bfloat16()
        parallel, parameters = DistributedDataParallel(model), list(model.parameters())
        masters = [p.detach().float().clone() for p in parameters] if self.job.bf16 else parameters
        optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)

        def step(batches: list[Any]) -> None:
            for batch in batches:
                loss_of(parallel, batch, world.device).backward()
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = parameter.grad.float() if self.job.bf16 else parameter.grad
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.step()
            if self.job.bf16:
                torch._foreach_copy_([p.data for p in parameters], masters)
            model.zero_grad(set_to_none=True)

        return step


class ByTrainer(Side):
    """transformers' Trainer with DeepSpeed, as its documentation has it."""

    compiled = False

    def train(self) -> None:
        from transformers import Trainer, TrainerCallback

        turns, pipe = self.turns, self.pipe

        class InTurns(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *arguments: Any, **named: Any) -> None:
                if not turns.count:
                    pipe.send({})
                turns.before_step()

        torch.set_num_threads(1)
        torch.set_float32_matmul_precision(self.job.matmul_precision)
        arguments = self._arguments()
        model, data, collator = self._model(), Rows(self.job), None
        if self.job.shape.block:
            collator = masking(self.job)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
        trainer.add_callback(InTurns())
        trainer.train()

    def _arguments(self) -> Any:
        from transformers import TrainingArguments

        ranks = int(os.environ["WORLD_SIZE"])
        return TrainingArguments(
            output_dir=f"{self.job.folder}/{self.job.side}",
            max_steps=ENDLESS,
            per_device_train_batch_size=self.job.shape.batch // ranks,
            use_cpu=not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu",
            bf16=self.job.bf16,
            torch_compile=self.compiled,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            deepspeed={
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
                "zero_optimization": {"stage": self.job.zero_stage},
                "bf16": {"enabled": self.job.bf16},
                "zero_allow_untested_optimizer": True,
            },
        )

    def _model(self) -> PreTrainedModel:
        from transformers import BertForMaskedLM, ViTForImageClassification

        plan = Plain(self.job, self.pipe)._plan()
        if self.job.shape.block:
            return BertForMaskedLM(plan.model)
        return ViTForImageClassification(plan.model)


class ByTrainerCompiled(ByTrainer):
    """The same with its own compilation."""

    compiled = True


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The prepared samples, as a user of Trainer would hand them over: ids without a mask, or normalised pixels."""

    def __init__(self, job: Job):
        from pipeline.data import open_prepared

        samples: Any = open_prepared(Path(job.folder) / "run" / "data").samples()
        self.samples, self.text = samples, job.shape.block > 0
        self.length = len(self.samples.rows["training"]) if self.text else 512

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self.text:
            special = self.samples.facts["special"]
            return {"input_ids": [special["cls"], *self.samples.rows["training"][number].tolist(), special["sep"]]}
        inputs, labels = self.samples.evaluate(0, np.array([number % self.samples.facts["evaluation"]]))
        return {"pixel_values": self.samples.finished(inputs, inputs)["pixel_values"][0], "labels": int(labels[0])}


def masking(job: Job) -> Any:
    """transformers' collator; its tokenizer has the ids of the prepared vocabulary."""
    from transformers import BertTokenizer, DataCollatorForLanguageModeling

    from pipeline.data import open_prepared

    facts = open_prepared(Path(job.folder) / "run" / "data").facts
    names = {number: f"[{name.upper()}]" for name, number in facts["special"].items()}
    path = Path(job.folder) / f"vocab-{job.side}-{os.environ['RANK']}.txt"
    path.write_text("".join(f"{names.get(number, f'piece{number}')}\n" for number in range(facts["vocab_size"])))
    return DataCollatorForLanguageModeling(BertTokenizer(vocab=str(path)), mlm_probability=0.15)


TWINS = {"lemon-eager": ("compile=false",), "lemon-compiled": ("compile=true",)}
SIDES: dict[str, type[Side]] = {
    "lemon": Lemon,
    **dict.fromkeys(TWINS, Lemon),
    "deepspeed": Bare,
    "plain": Plain,
    "trainer": ByTrainer,
    "trainer-compiled": ByTrainerCompiled,
}
