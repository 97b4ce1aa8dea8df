"""One line for every mistake: what, where, which values, the way out."""

from pathlib import Path

import pytest
import yaml

from pipeline import config
from pipeline.errors import UserError
from pipeline.training.fingerprint import Fingerprint
from tests.helpers.mutations import SHIPPED

ROOT = Path(__file__).parents[2]
BERT = ROOT / "configs" / "quickstart" / "bert.yaml"

MISTAKES = [
    ("stages.small.batchh=3", "stages.small.batchh: unknown key; did you mean 'batch'?"),
    ("stages.large.schedule.peek=1", "stages.large.schedule.peek: unknown key; did you mean 'peak'?"),
    ("data.tokenizer.vocab=3", "data.tokenizer.vocab: unknown key; did you mean 'vocab_size'?"),
    ("models.small.width=5", "models.small.width: unknown key; known: "),
    (
        "foo=1",
        "foo: unknown key; known: baseline, data, folder, hang, hash, max_time, models, name, node_timeout, processes,",
    ),
    ("models.small.heads=5", "models.small: hidden 96 is not a multiple of heads 5; choose heads that divide it"),
    (
        "models.large.layers=2",
        "stages.grown: target model 'large' has layers 2, fewer than its source's 3; an expansion cannot shrink",
    ),
    (
        "stages.small.schedule.horizon=100",
        "stages.small.schedule.horizon: a duration needs a number and a unit, such as '600 steps', not 100",
    ),
    ("stages.small.batch=1.5", "stages.small.batch: must be a whole number (got 1.5)"),
    ("stages.grown.source=large", "stages.grown.source: 'large' is no earlier stage and no folder"),
    (
        "stages.grown.source=smal",
        "stages.grown.source: 'smal' is no earlier stage and no folder; did you mean 'small'?",
    ),
    ("stages.grown.model=larg", "stages.grown.model: no model 'larg'; did you mean 'large'?"),
    ("stages.large.name=small", "stages.small: the name is taken"),
    ("stages.large.name=report.html", "stages.report.html: the name is taken"),
    ("stages.large.name=data.draft", "stages.data.draft: the name is taken"),
    ("stages.small.schedule.horizon=1e9999999 steps", "stages.small.schedule.horizon: 1e9999999 steps is more than"),
    ("models.large.layers=100000", "models.large.layers: must be at most 10000 (got 100000)"),
    ("models.large.hidden=1000000000", "models.large.hidden: must be at most 10000000 (got 1000000000)"),
    ("models.large.mlp=1000000000", "models.large.mlp: must be at most 10000000 (got 1000000000)"),
    ("data.workers=1000000", "data.workers: must be at most 256 (got 1000000)"),
    ("folder=''", "folder: names no folder; is a variable unset?"),
    ("stages.grown.source=''", "stages.grown.source: names no folder; is a variable unset?"),
    ("stages.small.start=none", "stages.small.start: 'none' is no earlier stage and no folder; known: none"),
    ("stages.large.start=''", "stages.large.start: names no folder; is a variable unset?"),
    ("stages.small.kind=trian", "stages.small: unknown kind 'trian'; known: train, expand"),
    ("processes=0", "processes: must be at least 1 or 'auto' (got 0)"),
    ("processes=some", "processes: must be a whole number or 'auto' (got 'some')"),
    ("data.dataset=5", "data.dataset: must be text or a list (got 5)"),
    ("data.dataset=[a, 5]", "data.dataset.1: must be text (got 5)"),
    ("data={dataset: embedded}", "data: kind is missing; known: text, images"),
    (
        "data.kind=images",
        "3 mistakes\n  data.tokenizer: belongs to kind text, not to kind images; remove it\n  data.block: ",
    ),
    ("data={kind: images, size: 4097}", "data.size: must be at most 4096 (got 4097)"),
    ("data=5", "data: must be a mapping of keys (got 5)"),
    ("models=[]", "models: must be a mapping of keys"),
    ("models={}", "models: needs 1 or more entries, has 0"),
    (
        "stages.small.activation_checkpointing=-1",
        "stages.small.activation_checkpointing: must be true or false or at least 1 (got -1)",
    ),
    (
        "stages.small.precision=fp8",
        "stages.small.precision: must be 'fp32', 'bf16', 'bf16-autocast' or 'fp16' (got 'fp8')",
    ),
    ("stages.small.optimizer={betas: [0.9]}", "stages.small.optimizer.betas.1: is missing and has no default"),
    ("stages.small.tensorboard=maybe", "stages.small.tensorboard: must be true or false (got 'maybe')"),
    ("name=a b", "name: 'a b' cannot name a folder; use at most 200 letters, digits, '_', '.' and '-', a"),
    (f"name={201 * 'a'}", f"name: '{60 * 'a'}' cannot name a folder; use at most 200 letters"),
    ("stages.small.schedule={horizon: 9 steps}", "stages.small.schedule.peak: is missing and has no default"),
    ("stages.small.schedule.kind=cosin", "stages.small.schedule: unknown kind 'cosin'; known: cosine, linear, "),
    (
        "stages.small.schedule.fraction=0.5",
        "stages.small.schedule.fraction: belongs to kind lemon, not to kind cosine; remove it",
    ),
    (
        "stages.large.schedule={kind: lemon, peak: 1, horizon: 9 steps}",
        "stages.large.schedule.fraction: is missing and has no default",
    ),
    ("stages.small.save_every=0 steps", "stages.small.save_every: '0 steps' is not positive; choose more than 0"),
    ("stages.small.schedule.horizon=0 steps", "stages.small.schedule.horizon: '0 steps' is not positive"),
    (
        "stages.small.schedule.minimum=1",
        "stages.small.schedule: minimum 1.0 and initial 0.0 may not be above peak 0.002",
    ),
    ("stages.small.schedule.peak=.inf", "stages.small.schedule.peak: must be a finite number (got inf)"),
    (
        "stages.small.optimizer={betas: [1.5, 2]}",
        (
            "2 mistakes\n  stages.small.optimizer.betas.0: must be less than 1 (got 1.5)\n"
            "  stages.small.optimizer.betas.1: must be less than 1 (got 2)"
        ),
    ),
    ("data.repeats=3", "data.repeats: belongs to kind images, not to kind text; remove it"),
    ("data.evaluation_crop=0.9", "data.evaluation_crop: belongs to kind images, not to kind text; remove it"),
    ("models.small.drop_path=1", "models.small.drop_path: must be less than 1 (got 1)"),
    ("data.tokenizer.kind=wordpiece", "data.tokenizer: tokenizer.path: a wordpiece tokenizer needs a path"),
]


@pytest.mark.parametrize("override, complaint", MISTAKES)
def test_mistakes_are_named_in_one_line(override, complaint):
    with pytest.raises(UserError) as caught:
        config.load(BERT, [override])
    assert str(caught.value).startswith(f"{BERT}: {complaint}")
    assert str(caught.value).count("\n") == complaint.count("\n") + ("data.block: " in complaint)
    assert not any(word in str(caught.value) for word in ("Input", "Field", "literal", "constrained", "function"))


def test_all_mistakes_are_told_a_line_for_each():
    mistakes = [
        "processes=0",
        "seed=x",
        "data.blok=3",
        "models.small.heads=5",
        "stages.small.schedule.horizon=9",
        "stages.large.precision=fp8",
    ]
    with pytest.raises(UserError) as caught:
        config.load(BERT, mistakes)
    heading, *lines = str(caught.value).split("\n")
    assert heading == f"{BERT}: 6 mistakes" and len(lines) == 6
    for place in (
        "processes",
        "seed",
        "data.blok",
        "models.small",
        "stages.small.schedule.horizon",
        "stages.large.precision",
    ):
        assert any(line.startswith(f"  {place}: ") for line in lines), place


def test_all_that_does_not_fit_together_is_told():
    with pytest.raises(UserError) as caught:
        config.load(
            BERT,
            [
                "models.large.layers=2",
                "models.large.hidden=64",
                "models.large.mlp=400",
                "stages.scratch.model=big",
                "stages.large.start=gron",
            ],
        )
    assert str(caught.value).split("\n")[1:] == [
        "  stages.grown: target model 'large' has layers 2, fewer than its source's 3; an expansion cannot shrink",
        "  stages.grown: target model 'large' has hidden 64, fewer than its source's 96; an expansion cannot shrink",
        "  stages.large.start: 'gron' is no earlier stage and no folder; did you mean 'grown'?",
        "  stages.scratch.model: no model 'big'; known: large, small",
    ]


def test_a_key_is_missed_in_its_own_section_whatever_models_are_called():
    with pytest.raises(UserError, match=r"models\.lemon\.fraction: unknown key"):
        config.load(BERT, ["models.lemon={family: vit, layers: 1, hidden: 8, heads: 1, fraction: 1}"])


def test_overrides_reach_stages_by_name_and_by_number():
    loaded = config.load(BERT, ["stages.small.schedule.peak=5e-4", "stages.2.batch=16", "seed=3"])
    assert (loaded.stage("small").schedule.peak, loaded.stage("large").batch, loaded.seed) == (5e-4, 16, 3)


def test_an_override_reaches_one_place_where_an_anchor_gave_a_value_to_several():
    shared = ROOT / "configs" / "bert" / "base-from-6x384.yaml"
    before = config.load(shared)
    changed = config.load(shared, ["stages.small.schedule.peak=1e-3", "stages.large.optimizer.clip=0.5"])
    assert changed.stage("small").schedule.peak == 1e-3 and changed.stage("large").optimizer.clip == 0.5
    restored = [
        "stages.small.schedule.peak=2e-4",
        f"stages.large.optimizer.clip={before.stage('large').optimizer.clip}",
    ]
    assert config.load(shared, restored) == before
    assert changed.stage("scratch") == before.stage("scratch")
    assert changed.stage("large").schedule == before.stage("large").schedule
    assert changed.stage("small").optimizer == before.stage("small").optimizer


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("stages.nope.batch=1", "the config has no key 'stages.nope.batch'"),
        ("batch", "an override is written key=value"),
        ("stages.small.batch.deep=1", "the config has no key"),
        ("stages.small.batch.deep.deeper=1", "the config has no key"),
    ],
)
def test_bad_overrides(override, complaint):
    with pytest.raises(UserError, match=complaint):
        config.load(BERT, [override])


@pytest.mark.parametrize(
    "value, reason",
    [
        ("[1", "expected ',' or ']', but got '<stream end>'"),
        ("*rate", "found undefined alias 'rate'"),
        ("2026-13-45", "month must be in 1..12"),
        ("!!bool x", "x"),
        ("!!timestamp x", "groupdict"),
        ("[" * 3000, "recursion"),
    ],
)
def test_an_override_whose_value_is_no_yaml(tmp_path, value, reason):
    """The value is told from the key, and no fault of the value is called one of the key; in a file as well."""
    with pytest.raises(UserError) as caught:
        config.load(BERT, [f"stages.small.batch={value}"])
    said = str(caught.value)
    assert said.startswith("override 'stages.small.batch=") and "its value is not valid YAML (" in said, said
    assert reason in said and "\n" not in said and "no key" not in said
    (tmp_path / "bad.yaml").write_text(f"a: {value}")
    with pytest.raises(UserError, match=r"bad\.yaml: not valid YAML"):
        config.load(tmp_path / "bad.yaml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the config"):
        config.load(tmp_path / "none.yaml")
    for text in ("a: [1,", "just words", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=r"bad\.yaml: (not valid YAML|a config is a mapping)"):
            config.load(tmp_path / "bad.yaml")


def test_no_key_is_there_twice(tmp_path):
    """PyYAML takes the last one without a word. What an anchor gives may be given again."""
    path = tmp_path / "twice.yaml"
    path.write_text(BERT.read_text() + "\nname: other\n")
    with pytest.raises(UserError, match=r"twice.yaml: not valid YAML: the key 'name' is there twice below line \d+"):
        config.load(path)
    path.write_text("a: {b: &deep {<<: &top {x: 1, y: 2}, y: 3}}\nc: {<<: *deep, x: 4}\n")
    with pytest.raises(UserError, match="a: unknown key"):
        config.load(path)


def test_what_is_dumped_loads_again_as_the_same_config(tmp_path):
    loaded = config.load(BERT)
    (tmp_path / "again.yaml").write_text(config.dump(loaded))
    assert config.load(tmp_path / "again.yaml") == loaded


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_config_loads_and_begins_with_its_command(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-0.6B-Base").mkdir()  # which one of them starts from
    text = path.read_text()
    assert config.load(path).name
    assert text.startswith(f"# lemon run {path.relative_to(ROOT)}"), "the first line is the command"
    assert yaml.safe_load(text)


def test_a_folder_may_hold_braces():
    assert config.load(BERT, ["folder=a/{foo}/{name}"]).path == Path("a/{foo}/quickstart-bert")


def test_a_stage_knows_the_settings_of_its_origins():
    """A changed source makes what was grown from it another model, though its own settings stay."""
    before, after = config.load(BERT), config.load(BERT, ["stages.small.schedule.peak=1e-3"])
    same = [s.name for s in before.stages if Fingerprint.of(before, s) == Fingerprint.of(after, after.stage(s.name))]
    assert same == ["scratch"]


def test_a_training_stage_is_no_expansion():
    loaded = config.load(BERT)
    assert loaded.training_stage("large") is loaded.stage("large")
    with pytest.raises(UserError, match=r"^stage 'grown' of config '.*' is an expansion; its training stages: small, "):
        loaded.training_stage("grown")
    with pytest.raises(UserError, match=r"no stage 'larg' in config .*did you mean 'large'"):
        loaded.training_stage("larg")
