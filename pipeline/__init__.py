"""Grow pretrained Transformers instead of training them from scratch: the Python API.

    from pipeline import describe, expand, grow, plan, reshard, verify

    large = grow(model, target_config)                       # in memory: a PreTrainedModel in, a larger one out
    result = expand("bert-base", "large.json", "grown")      # checkpoints on disk, of any layout and size
    verify("bert-base", "grown").lossless                    # True: both compute the same function

Nothing is printed: progress goes to the logger `pipeline`. Bad input raises `UserError`, whose text says what is wrong,
where, and the way out. Everything heavy is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, files_explained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from pipeline.checkpoints import CheckpointLayout
    from pipeline.checkpoints.describe import Description
    from pipeline.checkpoints.reshard import ReshardResult
    from pipeline.expansion.compare import Comparison
    from pipeline.expansion.expand import ExpansionResult
    from pipeline.expansion.fitted import Fitted
    from pipeline.expansion.planning import ExpansionPlan
    from pipeline.expansion.preview import Preview
    from pipeline.growth.method import ExpansionOptions
    from pipeline.records.file_hashes import Algorithm
    from pipeline.records.stage_facts import OptimizerState

__version__ = "0.2.0"
__all__ = [
    "UserError",
    "__version__",
    "describe",
    "expand",
    "expand_part",
    "grow",
    "plan",
    "reshard",
    "reshard_part",
    "verify",
]

Place = str | Path


@files_explained()
def grow(
    model: PreTrainedModel, target: PretrainedConfig, method: str = "lemon", *, seed: int = 0, **options: object
) -> PreTrainedModel:
    """A larger model that computes what `model` computes, in memory and in float32.

    target: a config of the same family with larger sizes. options: the method's own, such as `noise=0.5`. The result is
    verified as `expand` verifies a checkpoint. Raises UserError when the method cannot grow the model, or claims to be
    lossless and is not.
    """
    from pipeline.expansion.in_memory import grow_model

    return grow_model(model, target, method, options, seed)


@files_explained()
def plan(
    source: Place,
    target: Place | PretrainedConfig | None = None,
    method: str | None = None,
    *,
    method_options: Mapping[str, object] | None = None,
    operator: Place | None = None,
    optimizer_state: OptimizerState = "reset",
    layout: CheckpointLayout | str | None = None,
    source_config: Place | None = None,
    seed: int | None = None,
) -> Preview:
    """What `expand` with the same arguments would do, on which conditions, and what it needs; no tensor is read. Of a
    learned method: the growth with which its fit begins, and what the fit takes."""
    from pipeline.expansion.fitted import UNFITTED
    from pipeline.expansion.preview import preview

    asked = _Asked(
        Path(source), target, method, dict(method_options or {}), _path(operator), _path(source_config), seed
    )
    return preview(asked.planned(optimizer_state, layout, UNFITTED if asked.learned else None))


@files_explained()
def expand(
    source: Place,
    target: Place | PretrainedConfig | None,
    out: Place,
    method: str | None = None,
    *,
    method_options: Mapping[str, object] | None = None,
    operator: Place | None = None,
    data: Place | None = None,
    fit: Mapping[str, object] | None = None,
    optimizer_state: OptimizerState = "reset",
    layout: CheckpointLayout | str | None = None,
    source_config: Place | None = None,
    seed: int | None = None,
    workers: int | None = None,
    file_hash: Algorithm = "blake3",
) -> ExpansionResult:
    """Expand the checkpoint `source` to the sizes of `target`, verify the result, and publish it as the folder `out`.

    source: a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder. target: a config, a
    `config.json`, a folder with one, or `CONFIG.yaml:MODEL`. method: lemon by default. operator: the result of an
    earlier expansion, which says target and method. data: a YAML config whose data and processes a learned method is
    fitted with, in the folder `OUT.fit`; fit: keys of its recipe, such as `{"steps": 30}`. layout: of the result; by
    default Hugging Face files for such a source, else native ZeRO. workers: processes that write; the result is the
    same for any number. file_hash: `sha256` where a policy asks for it. Raises UserError, and publishes nothing, when a
    result that claims to be lossless is not.
    """
    from pipeline.expansion.expand import execute_expansion
    from pipeline.records.file_hashes import require_known
    from pipeline.records.processes import WORKERS

    require_known(file_hash)
    asked = _Asked(
        Path(source), target, method, dict(method_options or {}), _path(operator), _path(source_config), seed
    )
    fitted = asked.fitted(Path(out), _path(data), dict(fit or {}), optimizer_state, layout) if data or fit else None
    planned = asked.planned(optimizer_state, layout, fitted)
    return execute_expansion(planned, Path(out), workers or WORKERS, file_hash)


@files_explained()
def expand_part(
    part: str,
    source: Place,
    target: Place | PretrainedConfig | None,
    out: Place,
    method: str | None = None,
    *,
    method_options: Mapping[str, object] | None = None,
    operator: Place | None = None,
    optimizer_state: OptimizerState = "reset",
    layout: CheckpointLayout | str | None = None,
    source_config: Place | None = None,
    seed: int | None = None,
    workers: int | None = None,
    file_hash: Algorithm = "blake3",
) -> ExpansionResult | None:
    """`expand` shared among processes as `reshard_part` is; whoever ends last verifies the result too. A method that
    learns is fitted by one process: name the result of such an expansion as the `operator`."""
    from pipeline.checkpoints.parts_job import Part
    from pipeline.expansion import expand as expanding
    from pipeline.records.file_hashes import require_known
    from pipeline.records.processes import WORKERS

    require_known(file_hash)
    asked = _Asked(
        Path(source), target, method, dict(method_options or {}), _path(operator), _path(source_config), seed
    )
    if asked.learned:
        raise UserError(
            f"method '{method}' is fitted by one process; expand a checkpoint of these sizes without parts, then name "
            "its result with --operator"
        )
    planned = asked.planned(optimizer_state, layout, None)
    return expanding.expand_part(planned, Path(out), Part.parse(part), workers or WORKERS, file_hash)


@files_explained()
def verify(small: Place, large: Place, *, source_config: Place | None = None) -> Comparison:
    """Measure how far the checkpoint `large` computes the function of `small`, from which it was grown. source_config:
    the config of `small`, where that holds none."""
    from pipeline.expansion.compare import compare

    return compare(Path(small), Path(large), _path(source_config))


@files_explained()
def reshard(
    source: Place,
    out: Place,
    layout: CheckpointLayout | str | None = None,
    *,
    source_config: Place | None = None,
    workers: int | None = None,
    file_hash: Algorithm = "blake3",
) -> ReshardResult:
    """Write the checkpoint `source` in another layout, ZeRO stage or world size, moments and steps included. What a
    `layout` by name leaves open is as in the source. file_hash: `sha256` where a policy asks for it."""
    from pipeline.checkpoints.reshard import execute_reshard, plan_reshard
    from pipeline.records.file_hashes import require_known
    from pipeline.records.processes import WORKERS

    require_known(file_hash)
    planned = plan_reshard(Path(source), _layout(layout, Path(source)), _path(source_config))
    return execute_reshard(planned, Path(out), workers or WORKERS, file_hash)


@files_explained()
def describe(source: Place, *, tensors: bool = False) -> Description:
    """What a checkpoint is: layout, model, optimizer, where it came from. tensors: with one record for each of them."""
    from pipeline.checkpoints.describe import describe as describe_checkpoint

    return describe_checkpoint(Path(source), tensors)


@files_explained()
def reshard_part(
    part: str,
    source: Place,
    out: Place,
    layout: CheckpointLayout | str | None = None,
    *,
    source_config: Place | None = None,
    workers: int | None = None,
    file_hash: Algorithm = "blake3",
) -> ReshardResult | None:
    """`reshard` shared among processes, each with the same arguments but for `part`, which is `2/8` for the second of
    eight: on any nodes that share the folder of `out`, in any order, and again where one has died. Whoever ends last
    publishes, and has the result; the others return None."""
    from pipeline.checkpoints import reshard as resharding
    from pipeline.checkpoints.parts_job import Part
    from pipeline.records.file_hashes import require_known
    from pipeline.records.processes import WORKERS

    require_known(file_hash)
    planned = resharding.plan_reshard(Path(source), _layout(layout, Path(source)), _path(source_config))
    return resharding.reshard_part(planned, Path(out), Part.parse(part), workers or WORKERS, file_hash)


@dataclass(frozen=True)
class _Asked:
    """What `plan` and `expand` are asked for."""

    source: Path
    target: Place | PretrainedConfig | None
    method: str | None
    method_options: dict[str, object]
    operator: Path | None
    source_config: Path | None
    seed: int | None

    @property
    def learned(self) -> bool:
        """Whether the method has to be fitted first."""
        from pipeline.growth import methods

        return self.operator is None and methods.is_learned(self.method or methods.DEFAULT)

    @property
    def options(self) -> ExpansionOptions:
        from pipeline.growth import methods

        return methods.parse(self.method or methods.DEFAULT, self.method_options, self.seed or 0)

    @property
    def wanted(self) -> PretrainedConfig:
        """The target's config. Raises UserError."""
        from pipeline.expansion.target import find

        if self.target is None:
            raise UserError("what to grow to is not said: name a target, or the operator of an earlier expansion")
        if isinstance(self.target, str | Path):
            return find(str(self.target), self.source, self.source_config)
        return self.target

    def planned(
        self, optimizer_state: OptimizerState, layout: CheckpointLayout | str | None, fitted: Fitted | None
    ) -> ExpansionPlan:
        from pipeline.expansion import planning

        how = _layout(layout, self.source), self.source_config, optimizer_state
        if self.operator is None:
            return planning.plan_expansion(self.source, self.wanted, self.options, *how, fitted=fitted)
        if self.target or self.method or self.method_options or self.seed is not None:
            raise UserError(f"{self.operator}: an operator has its own target, method and seed; leave those out")
        return planning.plan_again(self.source, self.operator, *how)

    def fitted(
        self,
        out: Path,
        data: Path | None,
        recipe: dict[str, object],
        optimizer_state: OptimizerState,
        layout: CheckpointLayout | str | None,
    ) -> Fitted | None:
        """The coefficients of a learned method, fitted on `data` as `recipe` says; None where nothing says on what.
        Raises UserError, before the fit for what the expansion would refuse behind it."""
        from pipeline.checkpoints import publish
        from pipeline.expansion.fitted import UNFITTED
        from pipeline.runs import offline_fit

        if not self.learned:
            raise UserError("data to fit on, or keys of a fit, are for methods that learn; leave them out")
        begun = self.planned(optimizer_state, layout, UNFITTED)
        if data is None:
            return UNFITTED if offline_fit.recipe(recipe).steps == 0 else None
        publish.require_free(out)
        folder = out.absolute().with_name(out.absolute().name + ".fit")
        return offline_fit.fitted(begun.source, self.wanted, self.options, folder, data, recipe, self.source_config)


def _layout(layout: CheckpointLayout | str | None, source: Path) -> CheckpointLayout:
    from pipeline import checkpoints

    if layout is None or isinstance(layout, str):
        like = checkpoints.locate(source)
        return checkpoints.CheckpointLayout.choose(layout, checkpoints.default_layout(source), {}, like)
    return layout


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)
