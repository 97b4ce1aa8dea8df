"""Mistakes in our words: pydantic's complaints, a line for each, the place as a dotted path, stages by name."""

from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError, nearest

WORDS = {
    "missing": "is missing and has no default",
    "literal_error": "must be {expected}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "needs {min_length} or more entries, has {actual_length}",
    "too_long": "takes at most {max_length} entries, has {actual_length}",
}
"""What is said instead of pydantic's message, by the type of its error; `{…}` are the error's own values."""


class Problems(ValueError):
    """Several things that one validator found wrong."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


def told(problems: Iterable[str]) -> str:
    """One problem as it is; several behind their number, each on its own line and once."""
    distinct = list(dict.fromkeys(problems))
    return distinct[0] if len(distinct) == 1 else "\n  ".join([f"{len(distinct)} mistakes", *distinct])


def all_of(checks: Iterable[Callable[[], object]]) -> None:
    """Run every check. Raises one UserError that tells what all of them found."""
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(told(problems))


def explain(error: ValidationError, tree: Any, schema: Any) -> str:
    """All complaints about `tree`, which was to be a `schema` (a model, or a union of them)."""
    messages: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    branches: set[str] = set()
    for one in error.errors():
        place, is_branch = _place(one, tree)
        messages.setdefault(place, []).extend(_messages(one, schema))
        values[place] = _shown(one)
        branches |= {place} if is_branch else set()
    # A value that may be one entry or a list is complained about as both; what is wrong inside the list says more.
    outer = {place for place in branches if any(other.startswith(f"{place}.") for other in messages)}
    return told(
        f"{place}: {text}" if place else text
        for place, found in messages.items()
        if place not in outer
        for text in _joined(list(dict.fromkeys(found)), values[place])
    )


def _joined(messages: list[str], given: str) -> list[str]:
    """Branches of a union, of which any would do, as one sentence; else each as it is. `given`: the value, in words."""
    if len(messages) > 1 and all(message.startswith("must be ") for message in messages):
        messages = [" or ".join([messages[0], *(message.removeprefix("must be ") for message in messages[1:])])]
    return [message + (given if message.startswith("must ") else "") for message in messages]


def _shown(one: Any) -> str:
    value = one.get("input")
    return f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""


def _messages(one: Any, schema: Any) -> list[str]:
    """What one of pydantic's errors says."""
    context, location = one.get("ctx", {}), one["loc"]
    if isinstance(problems := context.get("error"), Problems):
        return problems.problems
    if one["type"] == "extra_forbidden":
        return [_unknown(schema, location)]
    if one["type"] == "union_tag_invalid":
        return [f"unknown {_key(context)} '{context['tag']}'; known: {context['expected_tags'].replace(chr(39), '')}"]
    if one["type"] == "union_tag_not_found":
        kinds = [_tag(branch) for branch in get_args(_section(schema, location))]
        return [f"{_key(context)} is missing; known: {', '.join(kinds)}"]
    if words := WORDS.get(one["type"]):
        return [words.format_map(context)]
    return [one["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")]


def _key(context: dict) -> str:
    return context["discriminator"].strip("'")


def _unknown(schema: Any, location: tuple) -> str:
    """An unknown key: that of another kind, or one that is near a known one."""
    *path, key = location
    owner = _section(schema, path)
    siblings = get_args(_section(schema, path[:-1])) if path and path[-1] == _tag(owner) else ()
    if kinds := [_tag(sibling) for sibling in siblings if key in sibling.model_fields]:
        return f"belongs to kind {' or '.join(kinds)}, not to kind {_tag(owner)}; remove it"
    return f"unknown key{nearest(str(key), owner.model_fields)}"


def _section(schema: Any, location: Iterable[Any]) -> Any:
    """The part of the schema at a location of pydantic's, which names the branch of a union by its tag."""
    while get_origin(schema) is Annotated:
        schema = get_args(schema)[0]
    first, *rest = [*location] or [None]
    if first is None:
        return schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _section(schema.model_fields[first].annotation, rest)
    if get_origin(schema) in (Union, UnionType):
        branches = [branch for branch in get_args(schema) if branch is not NoneType]
        if len(branches) == 1:  # X or None, of which the location does not name X
            return _section(branches[0], location)
        return _section(next(branch for branch in branches if _tag(branch) == first), rest)
    return _section(get_args(schema)[-1], rest)  # an entry of a list or of a mapping


def _tag(branch: Any) -> str | None:
    """The `kind` that tells this branch of a union from the others."""
    kind = getattr(branch, "model_fields", {}).get("kind")
    return get_args(kind.annotation)[0] if kind else None


def _place(one: Any, tree: Any) -> tuple[str, bool]:
    """`stages.large.schedule.peak` from pydantic's `('stages', 2, 'train', 'schedule', 'cosine', 'peak')`, which names
    the branches of unions, too; and whether it ends with such a branch."""
    parts, node, is_branch = [], tree, False
    for number, part in enumerate(one["loc"], 1):
        is_branch = not _holds(node, part)
        if not is_branch:
            child = node[part]
            parts.append(str((isinstance(node, list) and isinstance(child, dict) and child.get("name")) or part))
            node = child
        elif one["type"] == "missing" and number == len(one["loc"]):
            return ".".join([*parts, str(part)]), False
    return ".".join(parts), is_branch


def _holds(node: Any, part: Any) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)
