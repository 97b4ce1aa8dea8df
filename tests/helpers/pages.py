"""An HTML page as a reader meets it: its words, the rows of its tables, its pictures, what it would load."""

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree

PICTURE = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """rows: the cells of every table row. loads: addresses that a browser would fetch. pictures: the text of each SVG
    inside the page. unclosed, crossed: tags that do not close, or not in order."""

    VOID = {"meta", "link", "br", "img", "source", "hr"}

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.titles, self.rows, self.unclosed, self.crossed, self._words = [], [], [], [], [], []
        self.feed(text)
        self.close()
        encoded = [load.removeprefix(PICTURE) for load in self.loads if load.startswith(PICTURE)]
        self.pictures = [base64.b64decode(picture).decode() for picture in encoded]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        self.titles += [value for name, value in attributes if name == "title"]
        if tag not in self.VOID:
            self.unclosed.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.unclosed.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if "style" not in self.unclosed:
            self._words.append(data)
        if {"td", "th"} & set(self.unclosed):
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()


def texts(svg: str) -> list[str]:
    """The words of a figure. Raises ParseError for an SVG that is no XML."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in found]
