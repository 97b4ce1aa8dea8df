"""All mistakes of a config in one message: a line for each, its place as a dotted path, stages by name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.errors import UserError, nearest

WORDING = {
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
    "greater_than": "must be more than {gt:.12g}",
    "greater_than_equal": "must be at least {ge:.12g}",
    "less_than": "must be less than {lt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "too_short": "needs {min_length} or more entries, has {actual_length}",
    "too_long": "takes at most {max_length} entries, has {actual_length}",
}
"""The wording of pydantic's errors, by their type; `{…}` are an error's own values."""
KINDS = {float: "float_type", int: "int_type", bool: "bool_type", str: "string_type"}
LIMITS = {"ge": "greater_than_equal", "gt": "greater_than", "le": "less_than_equal", "lt": "less_than"}
"""Types and limits of a value, by the errors that tell of them."""


class ConfigProblems(ValueError):  # noqa: N818  (pydantic turns it into one of its errors)
    """Several problems that one validator of the schema found."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


def enumerated(problems: Iterable[str]) -> str:
    """A single problem as it is; several after their number, each once and on a line of its own."""
    distinct = list(dict.fromkeys(problems))
    return distinct[0] if len(distinct) == 1 else "\n  ".join([f"{len(distinct)} mistakes", *distinct])


def all_of(checks: Iterable[Callable[[], object]]) -> None:
    """Run every check. Raises one UserError with the problems of all of them."""
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(enumerated(problems))


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, in the words of its errors. Raises TypeError for a type that no text says."""
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = " or ".join(_named(each) for each in kinds if each is not NoneType)
    limits = " and ".join(_limits(field))
    return words + (f" {limits}" if limits else "") + (" or none" if NoneType in kinds else "")


def _named(kind: Any) -> str:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if kind not in KINDS:
        raise TypeError(
            f"{kind}: no single text says it; take float, int, bool, str or a Literal of texts, or None too"
        )
    return WORDING[KINDS[kind]].removeprefix("must be ")


def _limits(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        for name, error in LIMITS.items():
            if hasattr(limit, name):
                yield WORDING[error].format_map({name: getattr(limit, name)}).removeprefix("must be ")


def explain(error: ValidationError, tree: Any, schema: Any) -> str:
    """Everything that is wrong with `tree`, which was validated as a `schema` (a model, or a union of models)."""
    messages: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    branches: set[str] = set()
    for details in error.errors():
        place, is_branch = _place(details, tree)
        messages.setdefault(place, []).extend(_messages(details, schema))
        inputs[place] = _input(details)
        branches |= {place} if is_branch else set()
    # A value that may be one entry or a list of them fails as both; what is wrong inside the list says more.
    redundant = {place for place in branches if any(other.startswith(f"{place}.") for other in messages)}
    return enumerated(
        f"{place}: {text}" if place else text
        for place, at_place in messages.items()
        if place not in redundant
        for text in _merged(list(dict.fromkeys(at_place)), inputs[place])
    )


def _merged(messages: list[str], got: str) -> list[str]:
    """The alternatives of a union as one sentence, everything else as it is, followed by the value that was got."""
    if len(messages) > 1 and all(message.startswith("must be ") for message in messages):
        messages = [" or ".join([messages[0], *(message.removeprefix("must be ") for message in messages[1:])])]
    return [message + (got if message.startswith("must ") else "") for message in messages]


def _input(details: ErrorDetails) -> str:
    value = details.get("input")
    return f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""


def _messages(details: ErrorDetails, schema: Any) -> list[str]:
    """What one of pydantic's errors means."""
    context, location = details.get("ctx", {}), details["loc"]
    if isinstance(problems := context.get("error"), ConfigProblems):
        return problems.problems
    if details["type"] == "extra_forbidden":
        return [_unknown_key(schema, location)]
    if details["type"] == "union_tag_invalid":
        expected = context["expected_tags"].replace("'", "")
        return [f"unknown {_discriminator(context)} '{context['tag']}'; known: {expected}"]
    if details["type"] == "union_tag_not_found":
        kinds = [str(_kind(branch)) for branch in get_args(_section(schema, location))]
        return [f"{_discriminator(context)} is missing; known: {', '.join(kinds)}"]
    if wording := WORDING.get(details["type"]):
        return [wording.format_map(context)]
    return [details["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")]


def _discriminator(context: dict[str, Any]) -> str:
    return str(context["discriminator"]).strip("'").removesuffix("()").lstrip("_")


def _unknown_key(schema: Any, location: Sequence[int | str]) -> str:
    """An unknown key: one of another kind, or a misspelt one."""
    *path, key = location
    owner = _section(schema, path)
    siblings = get_args(_section(schema, path[:-1])) if path and path[-1] == _kind(owner) else ()
    if kinds := [str(_kind(sibling)) for sibling in siblings if key in _fields(sibling)]:
        return f"belongs to kind {' or '.join(kinds)}, not to kind {_kind(owner)}; remove it"
    return f"unknown key{nearest(str(key), _fields(owner))}"


def _fields(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the keys that a config has for them."""
    return {field.alias or name: field for name, field in schema.model_fields.items()}


def _section(schema: Any, location: Iterable[int | str]) -> Any:
    """The part of the schema at a location of pydantic's, which names the branch of a union by its kind."""
    while get_origin(schema) is Annotated or (optional := _optional(schema)):
        schema = get_args(schema)[0] if get_origin(schema) is Annotated else optional
    keys = [*location]
    if not keys:
        return schema
    first, *rest = keys
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _section(_fields(schema)[str(first)].annotation, rest)
    if get_origin(schema) in (Union, UnionType):
        return _section(next(branch for branch in get_args(schema) if _kind(branch) == first), rest)
    return _section(get_args(schema)[-1], rest)  # an entry of a list or of a mapping


def _optional(schema: Any) -> Any:
    """X, where the schema is X or None: a location does not name X."""
    union = get_origin(schema) in (Union, UnionType)
    branches = [branch for branch in get_args(schema) if branch is not NoneType] if union else []
    return branches[0] if len(branches) == 1 else None


def _kind(branch: Any) -> str | None:
    """The value of `kind` that discriminates this branch of a union."""
    field = getattr(branch, "model_fields", {}).get("kind")
    return str(get_args(field.annotation)[0]) if field else None


def _place(details: ErrorDetails, tree: Any) -> tuple[str, bool]:
    """`stages.large.schedule.peak` from pydantic's `('stages', 2, 'train', 'schedule', 'cosine', 'peak')`, in which
    `train` and `cosine` are branches of unions; and whether the location ends with a branch."""
    location, keys, node, is_branch = details["loc"], [], tree, False
    for number, key in enumerate(location, 1):
        is_branch = not _has(node, key)
        if not is_branch:
            child = node[key]
            name = child.get("name") if isinstance(node, list) and isinstance(child, dict) else None
            keys.append(str(name or key))
            node = child
        elif details["type"] == "missing" and number == len(location):
            return ".".join([*keys, str(key)]), False
    return ".".join(keys), is_branch


def _has(node: Any, key: int | str) -> bool:
    if isinstance(node, dict):
        return key in node
    return isinstance(node, list) and isinstance(key, int) and key < len(node)
