"""The code of the documentation, for tests that run it."""

import re
from pathlib import Path


def python_of(page: Path, section: str) -> str:
    """All Python of a section of a Markdown page, in one piece."""
    text = page.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
