"""`deepspeed:` of a training stage: every key of DeepSpeed's is taken, decided by another key, or refused with a
reason; what is taken arrives in DeepSpeed's config with the meaning that it has there."""

import re
from pathlib import Path

import pytest
from deepspeed.accelerator import real_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.runtime import config as of_deepspeed
from deepspeed.runtime import constants
from deepspeed.runtime.precision_config import DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig
from pydantic import ValidationError

from pipeline.config import deepspeed_keys
from pipeline.config.deepspeed_keys import SECTIONS, DeepSpeedKeys
from pipeline.config.schema import Config
from pipeline.config.validation_errors import explain
from pipeline.training.deepspeed_config import deepspeed_config
from tests.helpers.parity_task import stage

MODELS = {
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "fp16": DeepSpeedFP16Config,
}
VALUES = {
    "zero_optimization": {
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 2000,
        "overlap_comm": True,
        "reduce_scatter": False,
        "use_multi_rank_bucket_allreduce": False,
        "stage3_prefetch_bucket_size": 3000,
        "stage3_param_persistence_threshold": 10,
        "stage3_model_persistence_threshold": 20,
        "stage3_max_live_parameters": 4000,
        "stage3_max_reuse_distance": 5000,
        "stage3_module_granularity_threshold": 1,
        "stage3_use_all_reduce_for_fetch_params": True,
        "stage3_allgather_sequential": True,
    },
    "zero_optimization.offload_optimizer": {"device": "cpu", "pin_memory": False},
    "fp16": {
        "loss_scale": 2.0,
        "initial_scale_power": 9,
        "loss_scale_window": 50,
        "hysteresis": 3,
        "consecutive_hysteresis": True,
        "min_loss_scale": 4,
    },
}
"""A value for each key that is taken, other than DeepSpeed's default."""


def names(model: type) -> set[str]:
    """The names by which a section of DeepSpeed's config is given its fields."""
    return {field.alias or name for name, field in model.model_fields.items()}


def top_level() -> set[str]:
    """The keys that DeepSpeed's own code looks up in the whole config: the constants that it passes, and texts."""
    source = Path(of_deepspeed.__file__).read_text()
    asked = r"(?:get_scalar_param\(|get_dict_param\(|param_dict\.get\(|param_dict\[)(?:param_dict, )?([A-Z0-9_]+)"
    told = re.findall(asked, source)
    texts = re.findall(r"param_dict\.get\('([a-z_]+)'", source)
    return {getattr(constants, name, None) or getattr(of_deepspeed, name) for name in told} | set(texts)


@pytest.mark.parametrize("place", MODELS)
def test_every_field_of_a_section_is_known(place):
    known = {key.removeprefix(f"{place}.") for key in deepspeed_keys.known_keys() if key.startswith(f"{place}.")}
    assert names(MODELS[place]) <= known
    assert set(SECTIONS[place].model_fields) <= names(MODELS[place]), "what is taken is DeepSpeed's"


def test_every_key_that_deepspeed_looks_up_is_known():
    found = top_level()
    assert len(found) > 25, "the pattern finds DeepSpeed's keys"
    nested = {key.rpartition(".")[2] for key in deepspeed_keys.known_keys()}
    assert found - nested - {"enabled", "dtype", "type", "params", "legacy_fusion"} == set()


@pytest.mark.parametrize("place", MODELS)
def test_what_is_taken_means_the_same_to_deepspeed(place):
    assert set(VALUES[place]) == set(SECTIONS[place].model_fields) - {"offload_optimizer"}
    fields = {name: field.alias or name for name, field in MODELS[place].model_fields.items()}
    made = MODELS[place](**SECTIONS[place].model_validate(VALUES[place]).given())
    told = {fields[name]: value for name, value in made.model_dump(mode="json").items()}
    assert {key: told[key] for key in VALUES[place]} == VALUES[place]
    assert all(told[key] != MODELS[place]().model_dump(mode="json", by_alias=True)[key] for key in VALUES[place])


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"train_batch_size": 8}, "train_batch_size is decided by the stage's batch"),
        ({"bf16": {"enabled": True}}, "bf16 is decided by the stage's precision"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is decided by the stage's zero_stage"),
        ({"zero_optimization": {"offload_param": {}}}, "zero_optimization.offload_param is not taken: checkpoints"),
        ({"zero_optimization": {"reduce_bucket": 1}}, "did you mean 'reduce_bucket_size'?"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"offload_optimizer": {"nvme_path": "/"}}}, "offload_optimizer.nvme_path is not taken"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "must be 'cpu' or 'none'"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "must be a whole number"),
        ({"zero_optimization": {"stage3_prefetch_bucket_size": 5}}, "without effect in zero_stage 1"),
        ({"fp16": {"initial_scale_power": 4}}, "deepspeed.fp16 belongs to precision fp16, this is fp32"),
        ({"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}, "nothing is offloaded; add device: cpu"),
    ],
)
def test_what_is_refused(keys, said):
    assert said in refused(keys)


@pytest.mark.parametrize(
    "precision, keys, said",
    [
        ("bf16", {"zero_optimization": {"overlap_comm": True}}, "overlap_comm is without effect in zero_stage 1 with"),
        ("fp16", {"fp16": {"loss_scale": 8, "hysteresis": 3}}, "hysteresis is without effect beside a constant"),
    ],
)
def test_what_is_refused_in_a_precision(precision, keys, said):
    assert said in refused(keys, precision=precision)


def refused(keys: dict, **fields: object) -> str:
    """What is said of a stage with these keys of DeepSpeed's."""
    tree = {
        "name": "run",
        "data": {"kind": "text"},
        "models": {"m": {"family": "bert", "layers": 1, "hidden": 8, "heads": 2}},
        "stages": [
            {
                "kind": "train",
                "name": "small",
                "model": "m",
                "batch": 8,
                "schedule": {"peak": 1e-3, "horizon": "5 steps"},
                "deepspeed": keys,
                **fields,
            }
        ],
    }
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(tree)
    text = explain(caught.value, tree, Config)
    assert text.startswith("stages.small")
    return text


def test_all_mistakes_are_told():
    with pytest.raises(ValidationError) as caught:
        DeepSpeedKeys.model_validate({"optimizer": {}, "zero_optimization": {"stage": 1, "sub_group_size": 3}})
    assert [word in str(caught.value) for word in ("optimizer is", "zero_stage", "sub_group_size")] == [True] * 3


@pytest.mark.parametrize("zero_stage", range(4))
def test_the_stage_and_its_keys_are_one_config(zero_stage):
    keys = {"zero_optimization": {"reduce_bucket_size": 77}} if zero_stage else {}
    plain = deepspeed_config(stage(zero_stage=zero_stage, micro_batch=4), 2)
    both = deepspeed_config(stage(zero_stage=zero_stage, micro_batch=4, deepspeed=keys), 2)
    assert both == plain | {"zero_optimization": plain["zero_optimization"] | keys.get("zero_optimization", {})}
    assert plain["zero_optimization"]["stage"] == zero_stage


@pytest.mark.parametrize("device, overlapping", [("cpu", {3}), ("cuda", {1, 2, 3})])
def test_gradients_are_reduced_beside_the_backward_pass_on_gpus(monkeypatch, device, overlapping):
    accelerator = CUDA_Accelerator() if device == "cuda" else CPU_Accelerator()
    monkeypatch.setattr(real_accelerator, "ds_accelerator", accelerator)
    made = {number: deepspeed_config(stage(zero_stage=number, micro_batch=4), 2) for number in range(4)}
    assert {number for number, each in made.items() if each["zero_optimization"]["overlap_comm"]} == overlapping
    asked = stage(zero_stage=2, micro_batch=4, deepspeed={"zero_optimization": {"overlap_comm": False}})
    assert deepspeed_config(asked, 2)["zero_optimization"]["overlap_comm"] is False


def test_what_changes_numbers_is_told_apart():
    buckets = DeepSpeedKeys.model_validate({"zero_optimization": {"reduce_bucket_size": 5, "overlap_comm": True}})
    offload = DeepSpeedKeys.model_validate({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert buckets.deciding() == {} != offload.deciding()
    assert DeepSpeedKeys.model_validate(offload.deciding()).deciding() == offload.deciding()
