"""Which versions made a result."""

from importlib.metadata import version
from platform import python_version

from pipeline import __version__

LIBRARIES = ("torch", "deepspeed", "transformers")


def installed() -> dict[str, str]:
    return {"lemon": __version__, "python": python_version(), **{name: version(name) for name in LIBRARIES}}
