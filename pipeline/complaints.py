"""pydantic's complaints in our words: one line, the place as a dotted path, stages by name."""

from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import nearest


def explain(error: ValidationError, tree: dict, sections: dict[str, type[BaseModel]], root: type[BaseModel]) -> str:
    """The first complaint. `sections`: the schema behind each key, `root`: that of the whole tree."""
    first = error.errors()[0]
    place = _place(first["loc"], tree)
    if first["type"] == "extra_forbidden":
        owner = next((sections[part] for part in reversed(first["loc"][:-1]) if part in sections), root)
        return f"{place}: unknown key{nearest(str(first['loc'][-1]), owner.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) and repr(given) not in message else ""
    return f"{place}: {message}{shown}" if place else message


def _place(location: tuple, tree: Any) -> str:
    """`stages.large.schedule.peak` from pydantic's `('stages', 2, 'train', 'schedule', 'peak')`."""
    parts: list[str] = []
    node = tree
    for part in location:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue  # pydantic names the branch of a union that it took
        inside = isinstance(node, dict) or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        child = (node.get(part) if isinstance(node, dict) else node[part]) if inside else None
        named = isinstance(node, list) and isinstance(child, dict) and child.get("name")
        parts.append(str(named or part))
        node = child
    return ".".join(parts)
