"""HTML from data: every text is escaped here and nowhere else."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already."""

    html: str


@dataclass(frozen=True)
class Number:
    """A cell set flush right; `exact` is shown when the pointer rests on it."""

    text: str
    exact: str = ""


Content = str | Markup | Number
FLUSH = ' class="n"'


def inline(content: Content) -> str:
    """Content as HTML."""
    if isinstance(content, Markup):
        return content.html
    return escape(content.text if isinstance(content, Number) else content)


def code(text: str) -> Markup:
    """A name, a path or a command."""
    return Markup(f"<code>{escape(text)}</code>")


def element(tag: str, *contents: Content, kind: str = "") -> Markup:
    """`<tag class=kind>contents</tag>`."""
    opening = f'{tag} class="{escape(kind)}"' if kind else tag
    return Markup(f"<{opening}>{''.join(inline(content) for content in contents)}</{tag}>")


def table(heads: list[str], rows: list[list[Content]], sums: list[list[Content]] = ()) -> Markup:
    """A table that scrolls by itself on a narrow screen. A column is flush right when it holds a number."""
    shown = [*rows, *sums]
    flush = [any(isinstance(row[column], Number) for row in shown) for column in range(len(heads))]
    head = "".join(
        f'<th scope="col"{FLUSH * right}>{escape(text)}</th>' for text, right in zip(heads, flush, strict=True)
    )
    body = "".join(_row(row, flush) for row in rows)
    foot = f"<tfoot>{''.join(_row(row, flush) for row in sums)}</tfoot>" if sums else ""
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div>')


def _row(cells: list[Content], flush: list[bool]) -> str:
    return f"<tr>{''.join(_cell(cell, right) for cell, right in zip(cells, flush, strict=True))}</tr>"


def _cell(cell: Content, right: bool) -> str:
    exact = f' title="{escape(cell.exact)}"' if isinstance(cell, Number) and cell.exact else ""
    return f"<td{FLUSH * right}{exact}>{inline(cell)}</td>"


def figure(svg: str, caption: str) -> Markup:
    """A drawing with what it says."""
    return Markup(f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>')


def section(title: str, *contents: Markup) -> Markup:
    """A titled section."""
    return element("section", element("h3", title), *contents)
