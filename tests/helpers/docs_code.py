"""The code of the documentation, for tests that run it."""

import re
import shlex
from pathlib import Path


def python_of(page: Path, section: str) -> str:
    """All Python of a section of a Markdown page, in one piece."""
    return "".join(re.findall(r"```python\n(.*?)```", section_of(page, section), re.DOTALL))


def commands_of(page: Path, section: str) -> list[list[str]]:
    """The words of every command of a section: the lines that are set in by four blanks."""
    text = re.sub(r"```.*?```", "", section_of(page, section), flags=re.DOTALL)
    return [shlex.split(line) for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)]


def section_of(page: Path, section: str) -> str:
    """Its text, without its heading."""
    return page.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
