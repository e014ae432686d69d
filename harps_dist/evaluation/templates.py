"""What pages of results have in common: templates, pictures that lie within the page, and a mark by which it is known.

The templates are base.html.j2, which a page extends, and parts.html.j2, the macros for tables and figures. Whatever a
page shows is escaped. Tested in tests/unit/test_page.py.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from harps_dist.evaluation.figures import DPI
from harps_dist.files import atomic_write
from harps_dist.ownership import OutputKind

PAGE = "index.html"
CSS_DPI = 96
_HEAD = 4096  # characters of a page that its mark stands in


class Picture(NamedTuple):
    """A figure within a page. width, height: CSS pixels at which it has the size it was drawn for. pdf: a link to the
    same figure as PDF, "" where there is none."""

    title: str
    caption: str
    base64: str
    width: int
    height: int
    pdf: str


def picture(path: Path, title: str, caption: str, page: Path) -> Picture:
    """A PNG for a page. page: the folder that the page is to lie in, from which the PDF is linked."""
    content = path.read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))  # of the header, IHDR
    pdf = path.with_suffix(".pdf")
    link = quote(pdf.relative_to(page).as_posix()) if pdf.is_file() else ""
    encoded = b64encode(content).decode()
    return Picture(title, caption, encoded, round(width * CSS_DPI / DPI), round(height * CSS_DPI / DPI), link)


def page_kind(name: str, option: str, generator: str, *before: str) -> OutputKind:
    """A page that is known by its generator. before: what the head of older ones holds."""
    marks = (f'<meta name="generator" content="{generator}">', *before)

    def ours(path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            head = file.read(_HEAD)
        return any(mark in head for mark in marks)

    return OutputKind(name, option, ours)


def render(package: str, template: str, generator: str, **values: Any) -> str:
    """A page from a template of a package."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    places = [PackageLoader(name, ".") for name in dict.fromkeys((package, "harps_dist.evaluation"))]
    environment = Environment(
        loader=ChoiceLoader(places), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(generator=generator, **values)


def write_text(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")
