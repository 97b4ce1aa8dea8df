"""Fitting a learned method for a single expansion: a run of its own with that one stage, which resumes like any other.

Its folder lies beside the result, `OUT.fit`: data, records, the checkpoints of the coefficients. The data, the number
of processes and the limits are those of a run's config; the seed is the expansion's.
"""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PretrainedConfig

from pipeline import config as configs
from pipeline import models
from pipeline.config.fit import FitChoice
from pipeline.config.schema import Config, ExpandStage
from pipeline.config.validation_errors import explain
from pipeline.errors import UserError
from pipeline.expansion import fit
from pipeline.expansion.fitted import UNFITTED, Fitted
from pipeline.growth.method import ExpansionOptions
from pipeline.records.run_folder import write_text
from pipeline.runs import run

logger = logging.getLogger(__name__)

STAGE, MODEL = "grown", "target"
BATCH = 256
"""Samples of a step where the recipe says nothing: LiGO's."""
OWN = ("target", "source_config")
"""Keys of a fit that are set here."""


def recipe(keys: dict[str, Any]) -> FitChoice:
    """The keys of a fit, as a command line says them: all as text, None as `none`. Raises UserError."""
    given = {key: None if value == "none" else value for key, value in keys.items()}
    if own := [key for key in given if key in OWN]:
        raise UserError(f"keys of the fit: {own[0]} follows from what the command grows; leave it out")
    try:
        return FitChoice.model_validate({"batch": BATCH, **given})
    except ValidationError as error:
        raise UserError(f"keys of the fit: {explain(error, keys, FitChoice)}") from error


def fitted(
    source: Path,
    target: PretrainedConfig,
    options: ExpansionOptions,
    folder: Path,
    data: Path,
    keys: dict[str, Any],
    source_config: Path | None = None,
) -> Fitted:
    """Fit a growth on the data of the config `data`, in `folder`. keys: of its recipe. Raises UserError."""
    chosen = recipe(keys)
    if not chosen.steps:
        return UNFITTED
    text = models.config_text(target)
    content = sha256(text.encode()).hexdigest()[:12]  # another target is another setting
    places = {"target": f"target-{content}.json"}
    if source_config:
        places["source_config"] = str(source_config.resolve())
    alone = _run(configs.load(data, []), folder, target, options, source, chosen.model_copy(update=places))
    stage = alone.stages[0]
    assert isinstance(stage, ExpandStage)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / places["target"], text)
    run.fit_alone(alone, stage)
    logger.info(f"fit: its records are in {folder}")
    result = fit.fitted(alone, stage)
    assert result is not None, "the method learns"
    return result


def _run(
    like: Config, folder: Path, target: PretrainedConfig, options: ExpansionOptions, source: Path, chosen: FitChoice
) -> Config:
    """A run with one expansion, on the data of the run `like`."""
    method = {"name": options.method, **options.options.model_dump()}
    stage = {"kind": "expand", "name": STAGE, "source": str(source.absolute()), "model": MODEL, "method": method}
    content = {
        **like.model_dump(include={"processes", "hang", "hash", "data", "max_time", "restarts"}),
        "name": "fit",
        "seed": options.seed,
        "folder": str(folder),
        "models": {MODEL: _sizes(target)},
        "stages": [{**stage, "fit": chosen.model_dump()}],
    }
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"the fit cannot be: {explain(error, content, Config)}") from error


def _sizes(target: PretrainedConfig) -> dict[str, Any]:
    """What a run's records say of the model; its config is in target.json."""
    sizes, family = models.architecture_of(target).sizes(), models.of_config(target)
    heads = {"kv_heads": sizes["kv heads"], "head_dim": sizes["head_dim"]}
    return {
        "family": family.name,
        **{key: size for key, size in heads.items() if key in family.optional_sizes},
        "layers": sizes["layers"],
        "hidden": sizes["embed"],
        "heads": sizes["heads"],
        "mlp": sizes["mlp"],
    }
