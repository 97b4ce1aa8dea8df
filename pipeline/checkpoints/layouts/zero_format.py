"""DeepSpeed's native files: their names, their layout, and how to open them without executing code.

A group's parameters lie one after the other in flat fp32 tensors, cut over W ranks (measured on 0.19.8):

* stages 1, 2: the whole group is concatenated, zero-padded to a multiple of 2 W and cut into W equal parts;
  a parameter may straddle ranks. Weights are stored without the padding, moments with it.
* stage 3: each parameter is padded to W * ceil(numel / W) and cut; a rank holds its piece of every parameter.
"""

import math
import pickle
import re
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints.layouts.deepspeed_pickles import STAND_INS, Opaque, opaque_kind, opaque_stand_ins
from pipeline.checkpoints.tensors import ShardSlice
from pipeline.errors import UserError, one_line
from pipeline.optim import optimizers

STEP = "step"
"""What torch calls an optimizer's own count of a parameter's steps."""
SUB_GROUP = 10**9
"""DeepSpeed's default sub_group_size: elements."""


def open_file(path: Path, opaque: bool = False) -> Any:
    """A checkpoint file, mapped, never executed. Raises UserError for damage and for foreign pickles.

    opaque: objects of foreign classes do not shut the file out, they become `Opaque`.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS):
            mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are no archives
            if mapped:
                _require_uncompressed(path)
            return _opaquely(path) if opaque and mapped else _load(path, mapped)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, … for damaged or foreign files
        raise unsafe(path, error) from error


def _require_uncompressed(path: Path) -> None:
    """Raises UserError for what torch never writes: a small archive that becomes a large one in memory."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if packed := next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None):
        size = sum(record.file_size for record in records)
        raise UserError(
            f"{path}: '{packed.filename}' in it is compressed ({size:,} bytes in all), which torch never writes; save "
            "it again with torch.save"
        )


def _opaquely(path: Path) -> Any:
    """Again for every class whose objects hold items, which the pickle alone tells as it is read."""
    kinds: dict[str, type[Opaque]] = {}
    while True:
        try:
            with torch.serialization.safe_globals(opaque_stand_ins(path, kinds)):
                return _load(path, mapped=True)
        except pickle.UnpicklingError as error:
            if (found := opaque_kind(error)) is None or found[0] in kinds:
                raise
            kinds[found[0]] = found[1]


def _load(path: Path, mapped: bool) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def unsafe(path: Path, error: Exception) -> UserError:
    """What to say of a file or folder that torch does not open with `weights_only`."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    foreign = re.search(r"GLOBAL (\S+)", text)
    reason = f"it holds {foreign[1]}, which no checkpoint needs" if foreign else one_line(text)
    return UserError(f"{path}: cannot be loaded safely (damaged, or it holds code): {reason}")


def require_numbers(place: Path, what: str, tensor: torch.Tensor) -> None:
    """Raises UserError for a tensor without numbers of its own, or whose numbers lie otherwise than in rows."""
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "a tensor on the meta device" if tensor.is_meta else f"a tensor of layout {tensor.layout}"
        raise UserError(f"{place}: {what} is {kind}, which holds no numbers to carry; save it again from real tensors")


@contextmanager
def files_of_deepspeed(folder: Path) -> Iterator[None]:
    """What is looked up here in vain raises UserError: the files could be opened, but a pickle may hold anything, and
    nothing says what a file of DeepSpeed's has to hold but the reading of it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"{folder}: its files do not hold what DeepSpeed's do ({reason}); they are damaged, or of another tool"
        ) from error


def model_file(stage: int, rank: int = 0) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"


def optimizer_file(rank: int, bf16: bool) -> str:
    return f"{'bf16_' if bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


@dataclass(frozen=True)
class FlatPartition:
    """Where the parameters of one group lie. `sizes`: their numbers of elements in flat order."""

    stage: int
    world: int
    sizes: tuple[int, ...]

    @property
    def flat(self) -> int:
        """Length of each rank's flat tensor, padding included."""
        if self.stage == 3:
            return self._shares[-1][2] if self.sizes else 0
        return 2 * math.ceil(sum(self.sizes) / (2 * self.world))

    def stored(self, rank: int) -> int:
        """Length of this rank's stored weights: stages 1 and 2 leave the padding out."""
        return self.flat if self.stage == 3 else max(0, min(self.flat, sum(self.sizes) - rank * self.flat))

    @cached_property
    def _ends(self) -> list[int]:
        """Where each parameter ends in the group."""
        return list(accumulate(self.sizes))

    @cached_property
    def _shares(self) -> list[tuple[int, int, int]]:
        """Stage 3: the size of each parameter, its share per rank, and where that ends in the rank's flat."""
        shares = [math.ceil(size / self.world) for size in self.sizes]
        return list(zip(self.sizes, shares, accumulate(shares), strict=True))

    def of_rank(self, rank: int) -> Iterator[tuple[int, ShardSlice]]:
        """The slices of one rank in order, each with its parameter's number: those of `slices`, without the others."""
        if self.stage == 3:
            yield from self._each_of_rank(rank)
            return
        begin, end = rank * self.flat, min((rank + 1) * self.flat, sum(self.sizes))
        number = bisect_right(self._ends, begin)
        while begin < end:
            length = min(self._ends[number], end) - begin
            if length:
                start = begin - self._ends[number] + self.sizes[number]
                yield number, ShardSlice(rank, begin - rank * self.flat, start, length)
            begin, number = begin + length, number + 1

    def _each_of_rank(self, rank: int) -> Iterator[tuple[int, ShardSlice]]:
        for number, (size, share, end) in enumerate(self._shares):
            if rank * share < size:
                yield number, ShardSlice(rank, end - share, rank * share, min(share, size - rank * share))

    def slices(self) -> list[list[ShardSlice]]:
        """For every parameter, its slices in order."""
        return self._cut_each() if self.stage == 3 else self._cut_group()

    def _cut_each(self) -> list[list[ShardSlice]]:
        slices, offset = [], 0
        for size in self.sizes:
            share = math.ceil(size / self.world)
            starts = enumerate(range(0, size, share) if size else ())
            slices.append([ShardSlice(rank, offset, start, min(share, size - start)) for rank, start in starts])
            offset += share
        return slices

    def _cut_group(self) -> list[list[ShardSlice]]:
        slices, begin = [], 0
        for size in self.sizes:
            pieces, done = [], 0
            while done < size:
                rank, offset = divmod(begin + done, self.flat)
                length = min(size - done, self.flat - offset)
                pieces.append(ShardSlice(rank, offset, done, length))
                done += length
            slices.append(pieces)
            begin += size
        return slices


def sub_groups(sizes: Sequence[int], world: int, limit: int) -> list[int]:
    """Stage 3 cuts a group whose share per rank exceeds `limit` (sub_group_size) into several flats, each ended by the
    parameter that fills it. Returns how many parameters each has."""
    shares = [math.ceil(size / world) for size in sizes]
    if limit >= sum(shares):
        return [len(sizes)]
    counts, count, filled = [], 0, 0
    for number, share in enumerate(shares):
        count, filled = count + 1, filled + share
        if filled >= limit or number == len(shares) - 1:
            counts.append(count)
            count = filled = 0
    return counts


def said_sub_group_size(engine: dict[str, Any]) -> int | None:
    """What the config in a model_states file, which goes along to every layout, says of sub_group_size."""
    config = engine.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    said = zero.get("sub_group_size") if isinstance(zero, dict) else None
    return int(said) if isinstance(said, int | float) and math.isfinite(said) else None


def sub_group_size(cuts: Sequence[Sequence[Sequence[int]]], world: int, said: int | None) -> int | None:
    """The limit that makes these cuts: sizes of parameters, by flat, by group. said: what the config named, which
    counts where it makes them too. None where no limit between 0 and DeepSpeed's default does."""
    filled = [sum(math.ceil(size / world) for size in flat) for group in cuts for flat in group[:-1]]
    guesses = [] if said is None else [said]
    guesses += [min(filled)] if filled else [SUB_GROUP]
    for limit in guesses:
        if all(
            sub_groups([size for flat in group for size in flat], world, limit) == [len(flat) for flat in group]
            for group in cuts
        ):
            return limit
    return None


def is_scalar(value: object) -> bool:
    """Whether an optimizer's entry is one number, as torch keeps the products and rates of some."""
    return value.dim() == 0 if isinstance(value, torch.Tensor) else isinstance(value, int | float)


def step_of(state: dict[str, Any], hyper: dict[str, Any]) -> float | None:
    """The step that torch's state of a parameter holds, 0 where it has none yet; None for optimizers without one.

    hyper: of the parameter's group.
    """
    if STEP in state:
        return float(state[STEP])
    slots = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    spec = optimizers.recognise(slots, [hyper])
    return 0.0 if spec and spec.counts_steps_in(hyper) else None
