"""DeepSpeed's native files: their names, their layout, and how to open them without executing code.

A group's parameters lie one after the other in flat fp32 tensors, cut over W ranks (measured on 0.19.8):

* stages 1, 2: the whole group is concatenated, zero-padded to a multiple of 2 W and cut into W equal parts;
  a parameter may straddle ranks. Weights are stored without the padding, moments with it.
* stage 3: each parameter is padded to W * ceil(numel / W) and cut; a rank holds its piece of every parameter.
"""

import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from pipeline.errors import UserError

SUB_GROUP = 10**9
"""DeepSpeed's default sub_group_size: elements."""
ALLOWED = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
"""All that DeepSpeed pickles beside tensors; anything else in a checkpoint is refused."""


def open_file(path: Path) -> dict:
    """A checkpoint file, mapped, never executed. Raises UserError for damage and for foreign pickles."""
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )  # files of torch < 1.6 are no archives
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, … for damaged or foreign files
        text = re.sub(r"\x1b\[\d+m", "", " ".join(str(error).split()))
        found = re.search(r"GLOBAL (\S+)", text)
        reason = f"it holds {found[1]}, which no checkpoint needs" if found else text[:160]
        raise UserError(f"{path}: cannot be loaded safely (damaged, or it holds code): {reason}") from error


def model_file(stage: int, rank: int = 0) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"


def optimizer_file(rank: int, bf16: bool) -> str:
    return f"{'bf16_' if bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def optimizer_files(folder: Path) -> list[Path]:
    """The ranks' optimizer files in order. Raises UserError when a rank is missing."""
    ranks = {
        int(re.search(r"pp_rank_(\d+)_", path.name)[1]): path for path in folder.glob("*zero_pp_rank_*_optim_states.pt")
    }
    for rank in range(len(ranks)):
        if rank not in ranks:
            raise UserError(f"{folder}: the optimizer file of rank {rank} is missing; found ranks {sorted(ranks)}")
    return [ranks[rank] for rank in sorted(ranks)]


@dataclass(frozen=True)
class Piece:
    """`length` elements of a parameter from `start`, found on `rank` at `offset` of its flat."""

    rank: int
    offset: int
    start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Where the parameters of one group lie. `sizes`: their numbers of elements in flat order."""

    stage: int
    world: int
    sizes: tuple[int, ...]

    @property
    def flat(self) -> int:
        """Length of each rank's flat tensor, padding included."""
        if self.stage == 3:
            return sum(math.ceil(size / self.world) for size in self.sizes)
        return 2 * math.ceil(sum(self.sizes) / (2 * self.world))

    def stored(self, rank: int) -> int:
        """Length of this rank's stored weights: stages 1 and 2 leave the padding out."""
        return self.flat if self.stage == 3 else max(0, min(self.flat, sum(self.sizes) - rank * self.flat))

    def pieces(self) -> list[list[Piece]]:
        """For every parameter, its pieces in order."""
        return self._cut_each() if self.stage == 3 else self._cut_group()

    def _cut_each(self) -> list[list[Piece]]:
        found, offset = [], 0
        for size in self.sizes:
            share = math.ceil(size / self.world)
            starts = range(0, size, share)
            found.append([Piece(rank, offset, start, min(share, size - start)) for rank, start in enumerate(starts)])
            offset += share
        return found

    def _cut_group(self) -> list[list[Piece]]:
        found, begin = [], 0
        for size in self.sizes:
            pieces, done = [], 0
            while done < size:
                rank, offset = divmod(begin + done, self.flat)
                length = min(size - done, self.flat - offset)
                pieces.append(Piece(rank, offset, done, length))
                done += length
            found.append(pieces)
            begin += size
        return found


def gather(flats: Sequence[torch.Tensor], pieces: list[Piece], shape: tuple[int, ...]) -> torch.Tensor:
    """One parameter from the ranks' flats; a copy only where it straddles ranks."""
    return window(flats, pieces, 0, math.prod(shape)).view(shape)


def window(flats: Sequence[torch.Tensor], pieces: list[Piece], start: int, stop: int) -> torch.Tensor:
    """Elements `start` to `stop` of a parameter, flat."""
    parts = []
    for piece in pieces:
        first, last = max(start, piece.start), min(stop, piece.start + piece.length)
        if first < last:
            parts.append(flats[piece.rank][piece.offset + first - piece.start : piece.offset + last - piece.start])
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)


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
