"""protocol.json: the rule, as it was when the first run began, and when each arm was planned under each seed.

A later rule is refused. What is planned later is dated, and what was planned and is no longer there is named.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.records import run_folder
from pipeline.records.run_folder import read_json, write_json, write_text
from pipeline.records.strict import Strict
from pipeline.studies.schema import Study, Tuning

FILE, COPY = "protocol.json", "study.yaml"
RULE = ("metric", "baseline", "frontier", "target", "smooth", "confidence", "tuning", "tuned_in")


class Protocol(Strict):
    """planned: when, by `arm under seed N`, in ISO 8601; began: the first of these moments."""

    rule: dict[str, Any]
    began: str
    planned: dict[str, str]


def _pairs(study: Study) -> list[str]:
    return [f"{arm} under seed {seed}" for arm in study.arms for seed in study.seeds_of(arm)]


def _rule(study: Study) -> dict[str, Any]:
    held = study.model_dump(mode="json")
    return {key: held[key] for key in RULE}


def _with_defaults(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule of a study that began before tuning had a key of today: what it does without it."""
    tuning = rule.get("tuning")
    return {**rule, "tuning": {**Tuning().model_dump(), **tuning}} if isinstance(tuning, dict) else rule


def _require_as_tuned(study: Study) -> None:
    """Raises UserError where the study whose choices are taken has chosen by another rule."""
    path = study.tuned_at / FILE
    if study.tuned_in is None or not path.exists():
        return
    there, here = _with_defaults(_read(path).rule).get("tuning"), _rule(study)["tuning"]
    if there != here:
        raise UserError(
            f"{path}: chosen there with tuning {there!r}, and the config has {here!r}; take the tuning of the study "
            "that tuned_in names"
        )


def _read(path: Path) -> Protocol:
    try:
        return Protocol.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: not what a study plans; the file is damaged, restore it") from error


def of(study: Study) -> Protocol | None:
    """That of a study's folder; None before its first run. Raises UserError where it is damaged, and where the rule is
    another by now."""
    path = study.path / FILE
    _require_as_tuned(study)
    if not path.exists():
        return None
    held = _read(path)
    held = held.model_copy(update={"rule": _with_defaults(held.rule)})
    for key, value in _rule(study).items():
        if held.rule.get(key) != value:
            raise UserError(
                f"{path}: the study began with {key} {held.rule.get(key)!r}, and the config has {value!r}; a rule is "
                "fixed before the first run: take another folder (folder=…), or leave it"
            )
    return held


def fix(study: Study, content: str) -> None:
    """Write it, with what is planned now, and the study itself as YAML (`content`) beside it. Raises UserError as `of`
    does."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with run_folder.exclusive(study.path):
        before = of(study) or Protocol(rule=_rule(study), began=now, planned={})
        planned = {**dict.fromkeys(_pairs(study), now), **before.planned}
        held = before.model_copy(update={"planned": planned})
        write_json(study.path / FILE, held.model_dump(mode="json"))
        write_text(study.path / COPY, content)


def added(study: Study, held: Protocol) -> dict[str, str]:
    """What was planned later than the first runs, and when."""
    now = set(_pairs(study))
    return {pair: moment for pair, moment in held.planned.items() if moment > held.began and pair in now}


def dropped(study: Study, held: Protocol) -> list[str]:
    """What was planned once, and is not any more."""
    now = set(_pairs(study))
    return [pair for pair in held.planned if pair not in now]
