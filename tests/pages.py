"""A page of results, read as a browser does."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
FETCHED = {"src", "srcset", "poster", "data", "action"}  # attributes whose address is fetched; href on a link alone


class Page(HTMLParser):
    """What an HTML page holds. Raises AssertionError where a tag is not closed, or closed out of order.

    text: all that is read. links: targets of `a`. fetched: what a browser would load. tags: how many of each.
    """

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: dict[str, int] = {}
        self.anchors: set[str] = set()
        self._text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} are not closed"
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} is a script"
            if name in FETCHED or (name == "href" and tag != "a"):
                self.fetched.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name == "id":
                assert value not in self.anchors, f"{value} is there twice"
                self.anchors.add(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} was never opened"
        assert self.open[-1] == tag, f"{tag} is closed within {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self._text.append(data)
        assert not (self.open and self.open[-1] == "style" and ("url(" in data or "@import" in data))
