"""Checkpoints drawn at random, saved by the real engine, through layouts drawn at random and back: everything that a
source holds is in the result bit for bit, or named in a printed line and in the manifest, or the source is refused.

A test's number is its seed. Every run takes the first quarter of 60, the rest is marked `slow`;
LEMON_RANDOM_CHECKPOINTS=600 runs that many.
"""

import json
import os
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from tests.helpers import plain_files, pretrained
from tests.helpers.cli import lemon
from tests.helpers.draws import Draw, draw
from tests.helpers.forms import BESIDE, saved_as
from tests.helpers.samples import sample
from tests.helpers.scripts.plain_everything import bits
from tests.helpers.universal import convert
from tests.helpers.workers import WorkerPools

ASKED, FIRST, ALL = os.environ.get("LEMON_RANDOM_CHECKPOINTS"), 15, 60
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.slow] if seed >= FIRST and not ASKED else [])
    for seed in range(int(ASKED or ALL))
]
ACCOUNT = "tests.helpers.scripts.plain_draw:account"
TEST = "tests/distributed/test_random_checkpoints.py::test_everything_is_carried_or_named"
UNIVERSAL = ["--format", "universal"]
WEIGHTS = ("weight", "frozen")
LOST_BY_UNIVERSAL = ("buffer", "frozen")
"""What DeepSpeed's universal loader leaves as the script made it."""
NOT_BY_MAPPINGS = ("frozen", "buffer", "hyper", "scalar", "counter", "lr_scheduler", "loss_scaler", "client")
"""What DeepSpeed's calls do not read through mappings, whose order is another with round_robin_gradients (0.19.8)."""
REFUSED = "a checkpoint of ZeRO stage 0: "
"""Its files name no parameters, and where several orders fit nothing tells."""
NOTHING = ("None", "NoneType None", 0, False)
REFUSALS: dict[int, str | None] = {}
"""By the seeds that ran, the refusal if there was one."""
SECONDS: list[float] = []
"""What each took."""


class RefusalError(Exception):
    """A source that is refused by what is the matter with it."""


@dataclass
class Journey:
    """A drawn checkpoint on its way. said: what commands printed; left: what manifests list."""

    drawn: Draw
    folder: Path
    workers: WorkerPools
    capsys: pytest.CaptureFixture[str]
    said: str = ""
    left: list[str] = field(default_factory=list)

    def there_and_back(self) -> None:
        drawn, here = self.drawn, self.folder / "source" / "tag"
        source, before = here, self.saved(here)
        if drawn.converted:
            here = self.converted(source)
        for number, ((target, ranks), sums) in enumerate(zip(drawn.targets, drawn.sums, strict=True)):
            universal, sums = target == "universal", sums and target == "1" and drawn.bf16
            how = UNIVERSAL if universal else native(target, ranks, drawn.bf16, sums)
            here = self.reshard(here, f"out{number}", *how)
            if drawn.judged and drawn.loads(target):
                world = 1 if universal and not drawn.shared_by(ranks) else ranks
                precision = "wide" if sums else drawn.precision.replace("wide", "bf16")
                how = {"stage": 2 if universal else int(target), "precision": precision}
                self.judge(here, before, world=world, universal=universal, **how)
        if drawn.stage:  # stage 0 names no parameters, ours does
            sums = drawn.precision == "wide" and drawn.stage == 1
            back = self.reshard(here, "back", *native(drawn.stage, drawn.world, drawn.bf16, sums))
            gaps = plain_files.differences(source, back, ordered=not drawn.round_robin)
            self.require_named({in_a_file(keys): words for keys, words in gaps if not drawn.left_out(keys)})
        if drawn.family:
            self.through_hugging_face(here, before)

    def saved(self, source: Path) -> dict[str, object]:
        """What the engine held that has saved."""
        if self.drawn.family:
            sample(self.drawn.family).save_pretrained(self.folder / "config")
        before = self.run(self.drawn.world, save=place(source))
        if self.drawn.family:
            shutil.copy(self.folder / "config" / "config.json", source)
        return before

    def converted(self, source: Path) -> Path:
        """By DeepSpeed's own converter."""
        out = self.folder / "converted" / "tag"
        convert(source, out)
        if self.drawn.family:
            shutil.copy(source / "config.json", out)
        return out

    def through_hugging_face(self, here: Path, before: dict[str, object]) -> None:
        """What transformers loads is what the engine had as weights; all else is named. From what transformers, or a
        training script, saves of that the way back is the same."""
        net = pretrained.loaded(self.reshard(here, "hf", "--format", "huggingface", equal=False)).float()
        weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        kept = {key.partition(" ")[2]: str(said) for key, said in before.items() if key.startswith(WEIGHTS)}
        held = {name: bits(value.to(dtype_in(kept[name]))) for name, value in weights.items()}
        differ = [] if self.drawn.round_robin else [name for name in held if kept[name] != held[name]]
        self.require(set(kept) == set(held), set(kept) ^ set(held))
        self.require_named({(name,): f"{kept[name]} -> {held[name]}" for name in differ})
        others = [
            key for key, said in before.items() if said not in NOTHING and not key.startswith(("hyper", *WEIGHTS))
        ]
        self.require_named(dict.fromkeys(map(beside_weights, others), "lost"))
        form = saved_as(self.drawn.form, net, self.folder / "form")
        target, ranks = self.drawn.targets[0]
        again = self.reshard(
            form, "again", *(UNIVERSAL if target == "universal" else native(target, ranks, False)), equal=False
        )
        back = self.reshard(again, "for torch", *native(2, 1, bf16=False))
        module = torch.load(back / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        rounded = torch.bfloat16 if self.drawn.form == "bfloat16" else torch.float32
        differ = [name for name in weights if bits(module[name]) != bits(weights[name].to(rounded).float())]
        self.require(not differ, *differ)
        if self.drawn.form in ("state_dict", "trainer"):
            self.require_named({(key,): "lost" for key in BESIDE})

    def run(self, world: int, **more: object) -> dict[str, object]:
        """What the engine of the drawn script holds. more: of its job."""
        job = self.drawn.job(**{"config": str(self.folder / "config"), **more})
        held: dict[str, object] = self.workers.run(ACCOUNT, job, world)
        return held

    def judge(self, result: Path, before: dict[str, object], *, world: int, universal: bool, **again: object) -> None:
        """What a real engine restores is what the one that saved held. again: its stage and precision."""
        if self.drawn.round_robin:
            again["zero"] = {}
        after = self.run(world, load=place(result), universal=universal, **again)
        differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if universal:
            differ = [key for key in differ if not key.startswith(LOST_BY_UNIVERSAL)]
        if self.drawn.partial:
            differ = [key for key in differ if not key.startswith("frozen")]
        if self.drawn.round_robin:
            differ = [key for key in differ if key.startswith(NOT_BY_MAPPINGS)]
        self.require_named({(key.partition(" ")[2],): f"{before.get(key)} -> {after.get(key)}" for key in differ})

    def reshard(self, source: Path, name: str, *how: object, equal: bool = True) -> Path:
        """The result, of which `lemon diff` says that it is equal; else that its weights are, but for named ones."""
        out = self.folder / name / "tag"
        code, said, err = lemon(self.capsys, "reshard", source, "--out", out, *how)
        if code == 2 and REFUSED in err and err.count("\n") == 1 and not self.drawn.stage:
            raise RefusalError(err)
        self.require(code == 0, err)
        self.said += said
        self.left += json.loads((out / "manifest.json").read_text())["left_behind"]
        code, found, err = lemon(self.capsys, "diff", source, out, "--json", *([] if equal else ["--weights-only"]))
        if code == 1 and not equal:
            weights = json.loads(found)["tensors"]["weights"]
            self.require(weights["different"] == len(weights["worst"]) > 0, found)
            self.require_named({(gap["name"],): str(gap) for gap in weights["worst"]})
        else:
            self.require(code == 0, found, err)
        return out

    def require_named(self, differ: dict[tuple[str, ...], str]) -> None:
        """What is not there, by the names that it may be called, stands in a manifest, of which every line was
        printed."""
        unsaid = [line for line in self.left if line not in self.said]
        silent = [f"{names[0]}: {what}" for names, what in differ.items() if not any(map(self.named, names))]
        self.require(not unsaid, "not printed:", *unsaid)
        self.require(not silent, "silently:", *silent)

    def named(self, name: str) -> bool:
        return any(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", line) for line in self.left)

    def require(self, right: bool, *found: object) -> None:
        """Else fail, with what was drawn and what repeats it."""
        if not right:
            again = f"LEMON_RANDOM_CHECKPOINTS={self.drawn.seed + 1} python -m pytest '{TEST}[{self.drawn.seed}]'"
            pytest.fail("\n".join([str(self.drawn), *map(str, found), f"again: {again}"]), pytrace=False)


def dtype_in(said: str) -> torch.dtype:
    """Of a tensor that is described as `torch.bfloat16 (2, 3) 5329e872ca534f72`."""
    dtype: torch.dtype = getattr(torch, said.split(" ")[0].removeprefix("torch."))
    return dtype


def place(path: Path) -> dict[str, str]:
    return {"dir": str(path.parent), "tag": path.name}


def native(stage: int | str, world: int, bf16: bool, sums: bool = False) -> list[object]:
    how = ["--zero-stage", stage, "--world-size", world, "--bf16" if bf16 else "--no-bf16"]
    return ["--format", "zero", *how, "--fp32-sums" if sums else "--no-fp32-sums"]


def in_a_file(keys: tuple[str, ...]) -> tuple[str, ...]:
    """What a line may call an item of a file: by its keys, in an optimizer's state by the last, on other ranks than the
    first by the script's key."""
    file, *inside = keys
    whole = () if "rank_0" in file else inside[:1]
    return ".".join(inside), *(inside[-1:] if "state" in inside else whole)


def beside_weights(key: str) -> tuple[str, ...]:
    """What a line may call an item that Hugging Face files have no place for."""
    kind, _, name = key.partition(" ")
    if kind in ("client", "scalar", "counter"):
        return (name.replace("global_steps", "step").split(".")[0],)
    return (name if kind == "buffer" else kind,)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_is_carried_or_named(tmp_path, workers, capsys, seed):
    drawn = draw(seed)
    if drawn.precision == "fp16" and not workers.supports(1, fp16=True):
        drawn = replace(drawn, precision="bf16")
    REFUSALS[seed], begun = None, time.monotonic()
    try:
        Journey(drawn, tmp_path, workers, capsys).there_and_back()
    except RefusalError as refusal:
        REFUSALS[seed] = str(refusal)
    SECONDS.append(time.monotonic() - begun)


def test_most_are_not_refused(capsys):
    """Of those that ran before this one, in this process."""
    refused = [said for said in REFUSALS.values() if said]
    with capsys.disabled():
        print(f"\n{len(SECONDS)} random checkpoints in {sum(SECONDS):.0f} s, {len(refused)} refused")
    assert len(refused) <= 1 + len(REFUSALS) // 10, "\n".join(refused)
