"""Checking a whole config before its first stage runs: what would fail in the last stage must not cost the first."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import State, publish
from pipeline.config.data import TextData
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import Config, ExpandStage, FitStage, Stage, TrainStage
from pipeline.config.validation_errors import all_of
from pipeline.data import Prepared, as_read, data_of, inventory
from pipeline.durations import Duration
from pipeline.errors import UserError, placed
from pipeline.expansion import fit as fits
from pipeline.growth import methods, new_entries, optimizer_state
from pipeline.growth.making import FitNeeds
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.new_entries import NewEntries
from pipeline.growth.plan import GrowthPlan, begun_module, plan_growth, require_possible
from pipeline.models import Facts
from pipeline.models.architecture import Architecture
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import NEW_ENTRIES
from pipeline.runs import stage_models
from pipeline.training import attention
from pipeline.training.device_precisions import precisions_of_workers, require_precision
from pipeline.training.fingerprint import require_same
from pipeline.training.length import pace, rates, require_open_end
from pipeline.training.micro_batches import as_begun, divide, size_of
from pipeline.training.stage import first_sample, require_best_known, start_of
from pipeline.training.start import require_new_entries, require_start, require_whole_facts


def before_data(config: Config, ranks: Sequence[int], allowed: Collection[str] = ()) -> None:
    """Check what needs no data: families, batches, ranks, precisions, whether the models read blocks of this length and
    tokenizer, and the stages that have begun, of which the settings `allowed` may change. ranks: the numbers that may
    train, the largest last, of which a batch must suit one. Raises UserError that lists all problems."""
    precisions = precisions_of_workers()
    families = [partial(_require_family, name, sizes) for name, sizes in config.models.items()]
    stages = [partial(_stage_before_data, config, stage, ranks, precisions, allowed) for stage in config.stages]
    all_of([*families, *stages])
    if facts := inventory.certain(config.data):
        _require_trainable(config, facts)


def _require_family(model: str, sizes: ModelSizes) -> None:
    with placed(f"models.{model}"):
        models.family_of(sizes)


def _require_trainable(config: Config, facts: Facts) -> dict[str, PretrainedConfig]:
    """The config of each stage's model. Raises UserError that lists the models that cannot be trained on the data."""

    def trainable(name: str, sizes: ModelSizes) -> None:
        with placed(f"models.{name}"):
            models.trained(sizes, facts)

    all_of(partial(trainable, name, sizes) for name, sizes in config.models.items())
    stage_configs = stage_models.of_stages(config, facts)
    all_of(partial(_require_mask_of_documents, config, stage, stage_configs[stage.name]) for stage in config.stages)
    all_of(partial(attention.require_possible, each, stage_configs[each.name]) for each in _trainings(config))
    return stage_configs


def _trainings(config: Config) -> list[TrainStage]:
    """Every stage that trains, fits that are to be done too."""
    found = (fits.unfinished(config, each) if isinstance(each, ExpandStage) else each for each in config.stages)
    return [stage for stage in found if stage is not None]


def _require_mask_of_documents(config: Config, stage: Stage, model: PretrainedConfig) -> None:
    """Raises UserError for windows of attention, which a mask of documents would take the place of."""
    data = config.data
    if stage.kind != "train" or not isinstance(data, TextData) or data.cross_document:
        return
    windows = [window for window in models.of_config(model).windows(model) if window is not None]
    block = config.block_of(stage) or data.block
    if windows and min(windows) < block:
        raise UserError(
            f"stages.{stage.name}: its model attends to {min(windows)} tokens, fewer than a block's {block}, and "
            "data.cross_document: false knows no such windows; leave it out, or choose shorter blocks"
        )


def trackers_installed(config: Config) -> None:
    """Raises UserError where the package of a tracker is missing of a stage that is still to be trained; on the machine
    of rank 0, which tells them."""
    from pipeline.training import trackers

    for stage in config.stages:
        if isinstance(stage, TrainStage) and not StageFolder(config.path / stage.name).finished:
            with placed(f"stages.{stage.name}"):
                trackers.require(stage.tracked_by)


def checkpoints_fit(config: Config, stages: Sequence[Stage | FitStage], ranks: int) -> None:
    """Check the checkpoints that the training among the `stages` will load, as far as they are there. Raises UserError
    that lists all problems."""
    all_of(partial(require_start, config, stage, ranks) for stage in stages if isinstance(stage, TrainStage))


def checkpoints_whole(config: Config, stages: Sequence[Stage | FitStage]) -> bool:
    """Whether `checkpoints_fit`, on another process, has set aside what is damaged."""
    folders = [StageFolder(config.path / stage.name) for stage in stages if isinstance(stage, TrainStage)]
    try:
        for newest in (publish.newest(folder.checkpoints) for folder in folders if not folder.finished):
            if newest:
                require_whole_facts(newest)
    except (UserError, OSError):  # damaged, or renamed at this moment
        return False
    return True


def _stage_before_data(
    config: Config, stage: Stage | FitStage, ranks: Sequence[int], precisions: set[str], allowed: Collection[str]
) -> None:
    require_same(config, stage, allowed, each=True)
    if isinstance(stage, TrainStage):
        if not (folder := StageFolder(config.path / stage.name)).finished:
            _require_division(as_begun(stage, folder), ranks)
        require_precision(stage, precisions)
    else:
        options(stage, config.seed)
        _require_readers(config, stage)
        if fit := _fit_before_data(config, stage):
            _stage_before_data(config, fit, ranks, precisions, allowed)


def _fit_before_data(config: Config, stage: ExpandStage) -> FitStage | None:
    """The fit of an expansion. Raises UserError for keys of one where nothing is learned, and for a name that is
    taken."""
    if not methods.is_learned(stage.method.name):
        if stage.fit is not None:
            raise UserError(f"stages.{stage.name}.fit: method '{stage.method.name}' learns nothing; leave the key out")
        return None
    if _named(config, stage.fit_name):
        raise UserError(f"stages.{stage.fit_name}: the fit of '{stage.name}' has that name; choose another")
    return fits.unfinished(config, stage)


def _require_division(stage: TrainStage, ranks: Sequence[int]) -> None:
    if not any(divide(stage, count) for count in ranks):
        size_of(stage, ranks[-1])


def _require_readers(config: Config, stage: ExpandStage) -> None:
    """An optimizer state that is to go on needs training stages behind it that go on from it. One that has a checkpoint
    of its own reads it no more. It is written in the layout of the first of them; the others have it resharded."""
    if stage.optimizer_state == "reset":
        return
    where, behind = f"stages.{stage.name}.optimizer_state: {stage.optimizer_state}", config.continued_by(stage.name)
    if not behind:
        raise UserError(f"{where} needs a training stage behind it, which goes on from that state; use reset")
    readers = [reader for reader in behind if not publish.newest(StageFolder(config.path / reader.name).checkpoints)]
    for reader in readers:
        optimizer_state.require_continued(where, _optimizer_before(config, stage), reader.optimizer)


def after_data(config: Config, data: Prepared | None = None, counted: bool = True) -> dict[str, PretrainedConfig]:
    """Check what the data decide: model sizes, steps, and whether every growth can be lossless. Returns the config of
    each stage's model. data: instead of those of the run folder. counted: whether their number of samples is known;
    else schedules in epochs are not looked at. Raises UserError that lists all problems."""
    data = as_read(data, config) if data else data_of(config)
    stage_configs = _require_trainable(config, data.facts)
    stages = [stage for stage in config.stages if counted or not in_epochs(config, stage)]
    all_of(partial(_stage_after_data, config, stage, data, stage_configs) for stage in stages)
    return stage_configs


def in_epochs(config: Config, stage: Stage) -> bool:
    """Whether a stage's schedule, or where it begins in it, is measured by the number of training samples."""
    if not isinstance(stage, TrainStage):
        return False
    before = config.trained_before(stage) if stage.schedule.continues else None
    own = any(isinstance(key, Duration) and key.unit == "epochs" for key in vars(stage.schedule).values())
    return own or (before is not None and in_epochs(config, before))


def _stage_after_data(
    config: Config, stage: TrainStage | ExpandStage, data: Prepared, stage_configs: dict[str, PretrainedConfig]
) -> None:
    if isinstance(stage, TrainStage):
        require_open_end(config, stage)
        data = as_read(data, config, stage)
        worth = pace(stage, stage_configs[stage.name], data)
        rates(config, stage, worth, data)
        require_best_known(stage, worth)
        added = entries_added(config, stage, stage_configs) if stage.rewarm else None
        if added is not None and not added.kept:
            raise UserError(f"stages.{stage.name}.rewarm: '{stage.start}' adds no entry; leave it out")
        if stage.start and _named(config, stage.start) is None:
            if stage.rewarm and not publish.newest(StageFolder(config.path / stage.name).checkpoints):
                require_new_entries(start_of(config, stage), stage)
            first_sample(config, stage, data, start_of(config, stage))
    else:
        large = stage_configs[stage.name]
        _require_one_grouping(config, stage, large)
        _require_growth(config, stage, stage_models.source_of(stage, stage_configs), large)
        if fit := fits.unfinished(config, stage):
            _stage_after_data(config, fit, data, stage_configs)
            _require_fit(fit, large, data)


def _require_one_grouping(config: Config, stage: ExpandStage, large: PretrainedConfig) -> None:
    """A grown optimizer state is written in the groups of the first training behind it. Raises UserError for stages
    that go on with it in other groups, by their rates; an expansion of it goes by names."""
    behind = config.continued_by(stage.name) if stage.optimizer_state != "reset" else []
    readers = [each for each in behind if each.origin == stage.name]
    optimizers = [each.optimizer for each in (*behind[:1], *readers)]
    groups = [[group.names for group in checkpoints.fresh_groups(large, each)] for each in optimizers]
    if odd := [reader.name for reader, mine in zip(readers, groups[1:], strict=True) if mine != groups[0]]:
        raise UserError(
            f"stages.{odd[0]}.optimizer: its rates make other groups than those of '{behind[0].name}', in which "
            f"'{stage.name}' grows the optimizer state for both; give both the same, or each an expansion of its own"
        )


def _require_fit(fit: FitStage, large: PretrainedConfig, data: Prepared) -> None:
    if fit.target or fit.source_config:
        raise UserError(
            f"stages.{fit.name}: target and source_config are keys that lemon expand --data sets; leave them out"
        )
    fits.require_loss(fit, large, data)


def fit_needs(config: Config, stage: FitStage, stage_configs: dict[str, PretrainedConfig]) -> FitNeeds | None:
    """What fitting an expansion's method takes; None where that depends on its source."""
    if methods.find(stage.method.name).needs_source:
        return None
    small, large = stage_models.source_of(stage, stage_configs), stage_configs[stage.name]
    architectures = models.architecture_of(small), models.architecture_of(large)
    return FitNeeds.of(*architectures, options(stage, config.seed), models.initializer_range(large))


def _named(config: Config, name: str) -> TrainStage | ExpandStage | None:
    """The stage called `name`; None where a folder is meant."""
    return next((stage for stage in config.stages if stage.name == name), None)


def _require_growth(config: Config, stage: ExpandStage, small: PretrainedConfig, large: PretrainedConfig) -> None:
    """What an expansion's method and optimizer state need, as far as it can be known before there is a source."""
    method_options = options(stage, config.seed)
    with placed(f"stages.{stage.name}"):
        architectures = models.architecture_of(small), models.architecture_of(large)
        require_possible(*architectures, method_options)
        if stage.optimizer_state != "reset" and not methods.find(method_options.method).needs_source:
            growth = _growth(method_options, *architectures, models.initializer_range(large))
            slots = _optimizer_before(config, stage).slots, _slots_before(config, stage)
            optimizer_state.require(growth, stage.optimizer_state, *slots, _holds_new_entries(config, stage.source))


def _holds_new_entries(config: Config, name: str) -> bool:
    """Whether the state that an expansion will find has come through a growth that kept it on the entries before."""
    stage = _named(config, name)
    if stage is None:
        return bool(_state_in(Path(name)).engine.get(NEW_ENTRIES))
    before = _named(config, stage.origin) if isinstance(stage, TrainStage) and stage.origin else stage
    if not isinstance(before, ExpandStage) or before.optimizer_state == "reset":
        return False
    return before.optimizer_state == "asymmetric" or _holds_new_entries(config, before.source)


def _growth(chosen: ExpansionOptions, small: Architecture, large: Architecture, init_std: float) -> GrowthPlan:
    """As far as it is known without a source; of a learned method as its fit begins."""
    module = begun_module(small, large, chosen) if methods.is_learned(chosen.method) else None
    return plan_growth(small, large, chosen, init_std, module=module)


def entries_added(config: Config, stage: TrainStage, stage_configs: dict[str, PretrainedConfig]) -> NewEntries | None:
    """Those that the expansion before a stage adds, where it keeps the optimizer state of the others."""
    before = _named(config, stage.start) if stage.start else None
    if not isinstance(before, ExpandStage) or before.optimizer_state != "asymmetric":
        return None
    chosen, large = options(before, config.seed), stage_configs[before.name]
    if methods.find(chosen.method).needs_source:
        return None
    small = stage_models.source_of(before, stage_configs)
    sides = models.architecture_of(small), models.architecture_of(large)
    return new_entries.of_growth(_growth(chosen, *sides, models.initializer_range(large)), 0, None)


def _optimizer_before(config: Config, stage: ExpandStage) -> OptimizerSpec:
    """The optimizer of the state that the expansion reads: of the stage before it, or in the folder that it names. An
    expansion with a fresh optimizer is written with that of the stage behind it."""
    source = _named(config, stage.source)
    if source is None:
        return _state_in(Path(stage.source)).optimizer()
    if isinstance(source, TrainStage):
        return source.optimizer
    if source.optimizer_state != "reset":
        return _optimizer_before(config, source)
    return config.continued_by(source.name)[0].optimizer


def _slots_before(config: Config, stage: ExpandStage) -> list[str]:
    """The slots that the expansion will find: all of the optimizer's, or those in the folder that it names."""
    if _named(config, stage.source) is None:
        return list(_state_in(Path(stage.source)).slots)
    return [slot.name for slot in _optimizer_before(config, stage).slots]


def _state_in(folder: Path) -> State:
    return checkpoints.raw(checkpoints.locate(folder))


def options(stage: ExpandStage | FitStage, seed: int) -> ExpansionOptions:
    """The stage's method with its options, checked by the method. Raises UserError."""
    with placed(f"stages.{stage.name}.method"):
        return methods.parse(stage.method.name, stage.method.options, seed)
