"""One line for every mistake: what, where, which values, the way out."""

from pathlib import Path

import pytest
import yaml

from pipeline import config
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
BERT = ROOT / "configs" / "quickstart" / "bert.yaml"

MISTAKES = [
    ("stages.small.batchh=3", "stages.small.batchh: unknown key; did you mean 'batch'?"),
    ("stages.large.schedule.peek=1", "stages.large.schedule.peek: unknown key; did you mean 'peak'?"),
    ("data.tokenizer.vocab=3", "data.tokenizer.vocab: unknown key; did you mean 'vocab_size'?"),
    ("models.small.width=5", "models.small.width: unknown key; known: "),
    ("foo=1", "foo: unknown key; known: data, folder, models, name, processes, seed, stages"),
    ("models.small.heads=5", "models.small: hidden 96 is not a multiple of heads 5; choose heads that divide it"),
    ("models.large.layers=2", "stages.grown: target model 'large' has layers 2, fewer than its source's 3; an expansion cannot shrink"),
    ("stages.small.schedule.horizon=100", "stages.small.schedule.horizon: a duration needs a number and a unit, such as '600 steps', not 100"),
    ("stages.small.batch=1.5", "stages.small.batch: Input should be a valid integer"),
    ("stages.grown.source=smal", "stages.grown: 'smal' is no earlier stage and no folder; did you mean 'small'?"),
    ("stages.grown.model=larg", "stages.grown.model: no model 'larg'; did you mean 'large'?"),
    ("stages.large.name=small", "stages.small: the name is taken"),
    ("stages.small.kind=trian", "stages.small: Input tag 'trian'"),
    ("processes=0", "processes"),
    ("stages.small.save_every=0 steps", "stages.small.save_every: '0 steps' is no time at all; choose more than 0"),
    ("stages.small.schedule.horizon=0 steps", "stages.small.schedule.horizon: '0 steps' is no time at all"),
    ("stages.small.schedule.minimum=1", "stages.small.schedule: minimum 1.0 and initial 0.0 may not be above peak 0.002"),
    ("stages.small.schedule.peak=.inf", "stages.small.schedule.peak: Input should be a finite number"),
    ("stages.small.optimizer={betas: [1.5, 2]}", "stages.small.optimizer.betas.0: Input should be less than 1"),
    ("data.tokenizer.kind=wordpiece", "data.tokenizer: tokenizer.path: a wordpiece tokenizer needs a path"),
]


@pytest.mark.parametrize("override, complaint", MISTAKES)
def test_mistakes_are_named_in_one_line(override, complaint):
    with pytest.raises(UserError) as caught:
        config.load(BERT, [override])
    assert str(caught.value).startswith(f"{BERT}: {complaint}")
    assert "\n" not in str(caught.value)


def test_overrides_reach_stages_by_name_and_by_number():
    loaded = config.load(BERT, ["stages.small.schedule.peak=5e-4", "stages.2.batch=16", "seed=3"])
    assert (loaded.stage("small").schedule.peak, loaded.stage("large").batch, loaded.seed) == (5e-4, 16, 3)


@pytest.mark.parametrize("override, complaint", [
    ("stages.nope.batch=1", "the config has no place 'stages.nope.batch'"), ("batch", "an override is written key=value"),
    ("stages.small.batch.deep=1", "the config has no place"),
])
def test_bad_overrides(override, complaint):
    with pytest.raises(UserError, match=complaint):
        config.load(BERT, [override])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the config"):
        config.load(tmp_path / "none.yaml")
    for text in ("a: [1,", "just words", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match="bad.yaml: (not valid YAML|a config is a mapping)"):
            config.load(tmp_path / "bad.yaml")


def test_what_is_dumped_loads_again_as_the_same_config(tmp_path):
    loaded = config.load(BERT)
    (tmp_path / "again.yaml").write_text(config.dump(loaded))
    assert config.load(tmp_path / "again.yaml") == loaded


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_loads_and_begins_with_its_command(path):
    text = path.read_text()
    assert config.load(path).name
    assert text.startswith(f"# lemon run {path.relative_to(ROOT)}"), "the first line is the command"
    assert yaml.safe_load(text)


def test_a_folder_may_hold_braces():
    assert config.load(BERT, ["folder=a/{foo}/{name}"]).path == Path("a/{foo}/quickstart-bert")


def test_a_stage_knows_the_settings_of_its_origins():
    """A changed source makes what was grown from it another model, though its own settings stay."""
    before, after = config.load(BERT), config.load(BERT, ["stages.small.schedule.peak=1e-3"])
    same = [s.name for s in before.stages if before.fingerprint(s) == after.fingerprint(after.stage(s.name))]
    assert same == ["scratch"]
