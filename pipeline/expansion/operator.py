"""The growth of an earlier expansion as an artefact: plan.json and plan.safetensors beside its weights, hashed in its
manifest. It grows any checkpoint of the same source shape again, without what its method had looked at or learned."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import manifest
from pipeline.errors import UserError
from pipeline.growth import plan_file
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.plan import GrowthPlan, config_change
from pipeline.models.architecture import Architecture
from pipeline.records.file_hashes import sha256

WAY_OUT = "name the result of an expansion from a source of the same shape, or grow this one by a method of its own"
FILES = (plan_file.PLAN, plan_file.TENSORS, checkpoints.CONFIG)


@dataclass(frozen=True)
class Operator:
    """Of the expansion in `folder`. options: its method's. changed: the keys of its target's config that it has
    changed. fit: what fitting it was and has cost, as its manifest says."""

    folder: Path
    config: PretrainedConfig
    options: ExpansionOptions
    changed: tuple[str, ...]
    fit: dict[str, Any] | None

    @classmethod
    def read(cls, place: Path) -> "Operator":
        """Every byte of it is hashed. Raises UserError for a folder that holds none, or a file that is not as it was
        written."""
        folder = checkpoints.locate(place)
        if not (folder / manifest.NAME).exists() or plan_file.PLAN not in manifest.read(folder).files:
            raise UserError(f"{folder}: holds no operator of an expansion ({plan_file.PLAN}); {WAY_OUT}")
        manifest.verify_files(folder, FILES)
        content = plan_file.head(folder)
        _, config = models.read_config(folder / checkpoints.CONFIG)
        return cls(folder, config, content.options, content.config_change, manifest.read(folder).facts().get("fit"))

    @property
    def origin(self) -> dict[str, Any]:
        """For the manifest of what grows by it."""
        return {"path": str(self.folder), "plan_sha256": sha256(self.folder / plan_file.PLAN)}

    def target(self, small: PretrainedConfig) -> PretrainedConfig:
        """The target's config, with the source's own values of the keys that the growth changes."""
        before = small.to_dict()
        self.config.update({key: before[key] for key in self.changed if key in before})
        return self.config

    def plan(self, source: Architecture, target: Architecture, init_std: float) -> GrowthPlan:
        """The growth between these two. Raises UserError where it is that of other shapes."""
        plan = plan_file.load(self.folder, source, target, init_std, WAY_OUT)
        planned = {each.target: each.shape for each in plan.tensors}
        shapes = {row.name: target.shape(row) for row in target.rows()}
        if planned != shapes:
            name = next(name for name in {**shapes, **planned} if planned.get(name) != shapes.get(name))
            raise UserError(
                f"{self.folder / plan_file.PLAN}: grows '{name}' to shape {planned.get(name)}, and this source to "
                f"{shapes.get(name)}; {WAY_OUT}"
            )
        eta = plan.maps[target.residual.name].eta
        return replace(plan, config_change=config_change(source.epsilon, eta))
