"""Checkpoints drawn at random: what a training script held when it saved, and the layouts that its checkpoint goes
through."""

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from tests.helpers.forms import FORMS

STAGES, WORLDS, PRECISIONS = (0, 1, 2, 2, 3, 3), (1, 2, 2, 3), ("fp32", "fp32", "bf16", "bf16", "fp16")
OPTIMIZERS = (
    *("adamw", "adamw", "adamw", "adam", "amsgrad", "sgd", "momentum", "nesterov", "lion", "adagrad", "rmsprop"),
    *("radam", "adamax", "adadelta", "nadam", "rprop", "asgd"),
)
SCHEDULERS = (None, "lambda", "cosine", "one cycle", "warmup", "chained", "plateau")
BUFFERS = (
    *("int64", "int32", "int16", "int8", "uint8", "bool", "float64", "float32", "float16", "bfloat16", "complex64"),
    *("complex128", "float8_e4m3fn", "count", "scalar", "empty", "turned", "seen"),
)
CLIENT = (
    *("epoch", "nan", "text", "bytes", "none", "rng", "nested", "tuple", "set", "numbered", "view", "shared", "big"),
    *("parameter", "ordered", "counter", "dtype", "size", "complex", "half", "void", "random", "deep", "ranks"),
    *("sparse", "namespace", "path", "numpy", "numpy_rng", "moment", "default", "listed", "kind", "group_names"),
    *("deque", "history", "bunch", "keyed"),
)
FROZEN_DTYPES = ("float32", "float32", "float64", "uint8", "bfloat16")
SIZES = ((1,), (2,), (3,), (7,), (13,), (5, 7), (2, 3), (1, 1), (11, 2), (4, 4, 2), (31,), (64,))
FAMILIES = (
    "bert",
    "bert untied",
    "roberta",
    "xlm-roberta",
    "gpt2",
    "llama",
    "llama tied",
    "mistral",
    "qwen3 tied",
    "opt",
    "vit",
    "dinov2",
)
TARGETS = ("1", "2", "3", "universal")


@dataclass(frozen=True)
class Draw:
    """One training script at its save.

    precision: `wide` is bf16 with gradients in float32, for which stage 1 has files of its own. shapes: of the
    trained parameters; members: the optimizer group of each; turned: whether groups list them backwards; unused:
    whether the last gets no gradient; hollow: whether there is one more without a number; tied: whether the first has a
    second name. frozen: dtypes and shapes; partial: whether they are left out of the save. micro:
    micro-batches of a step; pending: whether one more was seen than whole steps. zero: further keys of
    zero_optimization. converted: by DeepSpeed's ds_to_universal first. targets: the layouts that follow one another, a
    stage and a number of ranks; sums: of each, whether an engine of stage 1 and bf16 is to sum gradients in float32;
    judged: whether an engine loads each. family: of transformers, whose model takes the
    place of the shapes; it goes on to a Hugging Face folder, and from `form` back."""

    seed: int
    stage: int
    world: int
    precision: str
    optimizer: str
    shapes: tuple[tuple[int, ...], ...]
    members: tuple[int, ...]
    frozen: tuple[tuple[str, tuple[int, ...]], ...]
    tied: bool
    unused: bool
    turned: bool
    buffers: tuple[str, ...]
    scheduler: str | None
    client: tuple[str, ...]
    steps: int
    micro: int
    pending: bool
    zero: dict[str, Any]
    converted: bool
    targets: tuple[tuple[str, int], ...]
    sums: tuple[bool, ...]
    judged: bool
    family: str | None
    form: str
    hollow: bool
    partial: bool

    def job(self, **more: Any) -> dict[str, Any]:
        """What the script is told."""
        return {**asdict(self), **more}

    @property
    def bf16(self) -> bool:
        return self.precision in ("bf16", "wide")

    @property
    def round_robin(self) -> bool:
        return "round_robin_gradients" in self.zero

    def left_out(self, keys: tuple[str, ...]) -> bool:
        """Whether the file that DeepSpeed wrote leaves out what can be made from the rest. The module's weights are
        written in float32 or bf16: an engine in fp16 rounds what it loads."""
        rounded = self.precision == "fp16" and keys[1] == "module"
        return rounded or (self.stage == 1 and keys[1] in ("frozen_param_shapes", "frozen_param_fragments"))

    def loads(self, target: str) -> bool:
        """Whether DeepSpeed's engine can (0.19.8): its stage 3 runs no parameter without numbers and lists Adagrad's
        flats twice, its universal loader passes over state of some optimizers."""
        third = self.hollow or self.optimizer == "adagrad"
        return not (target == "3" and third) and not (target == "universal" and self.optimizer in ("nadam", "asgd"))

    def shared_by(self, ranks: int) -> bool:
        """Whether every rank owns a number of every group; DeepSpeed's universal loader fails where one does not."""
        if self.family:
            return True
        sizes = [0] * (max(self.members) + 1)
        for shape, group in zip(self.shapes, self.members, strict=True):
            sizes[group] += math.prod(shape)
        return all(size > (ranks - 1) * 2 * math.ceil(size / (2 * ranks)) for size in sizes)


def draw(seed: int) -> Draw:
    """The same for the same seed, in every process."""
    chance, of_sums = random.Random(f"checkpoint {seed}"), random.Random(f"sums {seed}")
    stage, world = chance.choice(STAGES), chance.choice(WORLDS)
    shapes = _shapes(chance, world)
    groups = min(len(shapes), chance.choice((1, 1, 2, 2, 3)))
    steps = chance.choice((0, 1, 1, 2, 3))
    micro = chance.choice((1, 1, 2))
    precision, optimizer = chance.choice(PRECISIONS), chance.choice(OPTIMIZERS)
    family = chance.choice(FAMILIES) if chance.random() < 0.2 else None
    unsaved = (stage == 3 and not steps) or (stage == 0 and precision != "fp32")
    if optimizer == "adagrad" and (groups > 1 or family or unsaved):
        optimizer = "adamw"  # DeepSpeed 0.19.8 cannot train several groups of it, nor save or load it everywhere
    if stage and precision == "bf16" and of_sums.random() < 0.5:
        precision = "wide"
    zero = _zero(chance, stage)
    convertible = stage and steps and optimizer in ("adamw", "adam", "radam") and precision != "wide" and not zero
    return Draw(
        seed,
        stage,
        world,
        precision,
        optimizer,
        shapes,
        members=_members(chance, len(shapes), groups),
        frozen=tuple((chance.choice(FROZEN_DTYPES), chance.choice(SIZES)) for _ in range(chance.choice((0, 0, 1, 3)))),
        tied=chance.random() < 0.4,
        unused=len(shapes) > 1 and chance.random() < 0.2,
        turned=chance.random() < 0.2,
        buffers=tuple(chance.sample(BUFFERS, chance.choice((0, 2, 5)))),
        scheduler=chance.choice(SCHEDULERS),
        client=tuple(chance.sample(CLIENT, chance.choice((0, 3, 6)))),
        steps=steps,
        micro=micro,
        pending=micro > 1 and chance.random() < 0.5,
        zero=zero,
        converted=bool(convertible) and chance.random() < 0.5,
        targets=tuple((chance.choice(TARGETS), chance.choice((1, 2, 3, 4))) for _ in range(2)),
        sums=(of_sums.random() < 0.5, of_sums.random() < 0.5),
        judged=chance.random() < 0.6,
        family=family,
        form=chance.choice(FORMS),
        hollow=not family and stage < 3 and chance.random() < 0.15,
        partial=not family and chance.random() < 0.1,
    )


def _shapes(chance: random.Random, world: int) -> tuple[tuple[int, ...], ...]:
    """Odd sizes; at times the last parameter fills the last rank's share alone."""
    shapes = [chance.choice(SIZES) for _ in range(chance.choice((1, 2, 4, 6)))]
    if chance.random() < 0.2:
        shapes += [(64 * world,)]
    return tuple(shapes)


def _members(chance: random.Random, count: int, groups: int) -> tuple[int, ...]:
    """Every group has a parameter, in any order."""
    members = [*range(groups), *(chance.randrange(groups) for _ in range(count - groups))]
    chance.shuffle(members)
    return tuple(members)


def _zero(chance: random.Random, stage: int) -> dict[str, Any]:
    if stage == 3 and chance.random() < 0.5:
        return {"sub_group_size": chance.choice((0, 1, 8, 30, 100))}
    if stage == 2 and chance.random() < 0.25:
        return {"round_robin_gradients": True}
    return {}
