"""Read a run's config: YAML with `dotted.key=value` overrides, into the schema.

Any key can be overridden on the command line, stages by name: `stages.large.schedule.peak=1e-3`. What an anchor (`&`)
gives to several places is overridden in the named place alone. An unknown key, a wrong type or an impossible size
raises `UserError` before anything is started.
"""

from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import number_formats
from pipeline.config.schema import Config
from pipeline.config.validation_errors import explain
from pipeline.errors import UserError, one_line
from pipeline.records.strict import Strict

NOT_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)
"""What PyYAML raises for text that is no YAML, and for a value that is not what its form or its tag says (the date
2026-13-45, `!!bool x`)."""


Checked = TypeVar("Checked", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's own rule that no mapping has a key twice, which PyYAML leaves to whoever uses it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        counted = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counted.items() if count > 1]:
            raise yaml.YAMLError(f"the key '{twice[0]}' is there twice below line {node.start_mark.line + 1}")
        return node


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML config and apply `dotted.key=value` overrides. Stages that have begun keep the number formats that
    it leaves open. Raises UserError."""
    tree = read_tree(path, overrides)
    if "arms" in tree and "stages" not in tree:
        raise UserError(f"{path}: this is a study, no run; start it by lemon study {path}")
    return number_formats.as_begun(validated(Config, tree, Path(path)))


def read_tree(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a YAML file, with overrides, not validated yet. Raises UserError."""
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); check the path") from error
    except NOT_YAML as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error, longest=400)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys, such as 'name: …'; see configs/quickstart/bert.yaml")
    for override in overrides:
        _override(tree, override)
    return tree


def validated(schema: type[Checked], tree: dict[str, Any], where: Path) -> Checked:
    """The keys as a `schema`. Raises UserError that names all mistakes."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, tree, schema)}") from error


def dump(config: Strict) -> str:
    """The config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"'{text}': an override is written key=value, such as stages.small.batch=32")
    put(tree, key, _value(text, value), f"override '{text}'")


def put(tree: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Set a dotted key. said: what asks for it, for the message. Raises UserError where there is no such place."""
    *parents, last = key.split(".")
    try:
        node: Any = tree
        for part in parents:
            node = _child(node, part)
        index = _index(node, last) if isinstance(node, list) else last
        node[index] = value
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{said}: the config has no key '{key}'") from error


def _value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except NOT_YAML as error:
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(
            f"override '{override}': its value is not valid YAML ({reason}); put quotes around what is text"
        ) from error


def _child(node: Any, part: str) -> Any:
    """The node below, made this place's own first: YAML reads an anchor as one object for all that refer to it."""
    if isinstance(node, list):
        index = _index(node, part)
        node[index] = copy(node[index])
        return node[index]
    node[part] = copy(node.get(part, {}))
    return node[part]


def _index(nodes: list[Any], part: str) -> int:
    for index, node in enumerate(nodes):
        if node.get("name") == part or str(index) == part:
            return index
    raise KeyError(part)
