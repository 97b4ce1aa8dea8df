"""The growth methods, by name. To add one: a class in a file of this folder, and its line here."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.config.validation_errors import allowed, explain
from pipeline.errors import UserError, nearest
from pipeline.growth.method import ExpansionOptions, LearnedMethod, Method
from pipeline.growth.methods.aki import Aki
from pipeline.growth.methods.depth import Interpolate, Stack
from pipeline.growth.methods.fpi import Fpi
from pipeline.growth.methods.from_scratch import FromScratch
from pipeline.growth.methods.lemon import Lemon
from pipeline.growth.methods.ligo import Ligo
from pipeline.growth.methods.mango import Mango
from pipeline.growth.methods.net2net import Net2Net
from pipeline.growth.methods.sparkling import Sparkling
from pipeline.growth.methods.tile import Tile

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(Lemon(), Net2Net(), Fpi(), Aki(), Stack(), Interpolate()),
        *(Tile(), Sparkling(), Ligo(), Mango(), FromScratch()),
    )
}
DEFAULT = Lemon.name


def find(name: str) -> Method:
    """The method called `name`. Raises UserError with the nearest name."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'{nearest(name, METHODS)}")
    return METHODS[name]


def is_learned(name: str) -> bool:
    """Whether a method has to be fitted before anything grows by it. Raises UserError for an unknown one."""
    return isinstance(find(name), LearnedMethod)


def parse(name: str = DEFAULT, options: Mapping[str, object] | None = None, seed: int = 0) -> ExpansionOptions:
    """A method's name and its options, as a config or a command line says them (numbers may be text), checked. Raises
    UserError for an unknown method, an option that the method does not have, and a value that the option cannot
    take."""
    method, values = find(name), dict(options or {})
    fields = method.Options.model_fields
    if unknown := sorted(set(values) - set(fields)):
        known = f"its options are {', '.join(fields)}" if fields else "it has none"
        raise UserError(f"method '{name}' has no option '{unknown[0]}'; {known}")
    try:
        return ExpansionOptions(name, method.Options.model_validate(values), seed)
    except ValidationError as error:
        raise UserError(f"options of method '{name}': {explain(error, values, method.Options)}") from error


def describe() -> list[str]:
    """Every method and its options, a line each, for --help."""
    lines = []
    for name, method in METHODS.items():
        lines.append(f"{name}: {method.summary}")
        lines += [
            f"  {option}={allowed(field)} (default {_written(field.default)}): {field.description}"
            for option, field in method.Options.model_fields.items()
        ]
    return lines


def _written(value: Any) -> str:
    """A value as `KEY=VALUE` has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
