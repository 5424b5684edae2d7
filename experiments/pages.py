"""Self-contained HTML pages: elements that escape what they hold, numbers a program can read back, pictures inline."""

import base64
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What HTML allows in no text, not even escaped: controls, halves of surrogate pairs, non-characters.
_FORBIDDEN = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = ("img", "link", "meta")  # Elements that hold nothing and are not closed.
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
dl { display: grid; grid-template-columns: 16rem minmax(0, 1fr); gap: .3rem 1rem; }
dt { font-weight: 600; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
dd > data:first-child { font-weight: 600; }
data { font-variant-numeric: tabular-nums; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; }
figure { margin: 0; }
figcaption, .reason { color: #555; font-size: .875rem; }
summary { cursor: pointer; }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
th[scope=row] { position: sticky; left: 0; background: #fff; min-width: 6rem; }
td > .reason { white-space: nowrap; }
.scroll { overflow-x: auto; }
.scroll > img { min-width: 40rem; }
@media (max-width: 40rem) { dl { display: block; } dt { margin-top: .6rem; } }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.verdict { padding: .7rem 1rem; border-left: .4rem solid #b26a00; background: #fff6e5; }
.verdict.consistent { border-color: #1b7f3b; background: #eaf7ee; }
.verdict.modes_missing, .verdict.unreliable { border-color: #b3261e; background: #fdecea; }
"""


class Html(str):
    """Markup that `tag` made; anything else is text and is escaped."""


def escaped(text: str) -> Html:
    """Text as HTML may hold it."""
    return Html(html.escape(printable(text)))


def printable(text: str) -> str:
    """Text with a mark in place of every character that is none."""
    return _FORBIDDEN.sub("\ufffd", text)


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
      name: of it.
      *children: markup as it is, anything else as text.
      **attributes: as text; a trailing underscore is dropped, others stand for a hyphen.
    """
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"' for key, value in attributes.items())
    start = f"<{name}{''.join(pairs)}>"
    return Html(start if name in _VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Several children as one."""
    return Html("".join(child if isinstance(child, Html) else escaped(str(child)) for child in children))


def shown(value: Any) -> str:
    """A value as a person reads it: four digits of a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def literal(setting: Any) -> str:
    """A setting as JSON has it."""
    return json.dumps(setting, ensure_ascii=False)


def number(value: float, name: str) -> Html:
    """A number in four digits; the element keeps all of them, and the name under which it was measured."""
    return tag("data", shown(value), value=value, data_name=name)


def table(head: Sequence[Any], body: Iterable[Sequence[Any]]) -> Html:
    """Rows under a head, the first cell of each naming it."""
    rows = (tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in body)
    columns = (tag("th", cell, scope="col") for cell in head)
    return scrolling(tag("table", tag("thead", tag("tr", *columns)), tag("tbody", *rows)))


def scrolling(content: Html) -> Html:
    """Content that scrolls by itself where the screen is narrower; by keys too, which only move what has the focus."""
    return tag("div", content, class_="scroll", tabindex=0)


def facts(rows: Iterable[Sequence[Any]]) -> Html:
    """Terms, each followed by what is said of it."""
    return tag("dl", *(joined((tag("dt", term), tag("dd", *said))) for term, *said in rows))


def folded(title: str, *content: Any) -> Html:
    """Content that opens at a click."""
    return tag("details", tag("summary", title), *content)


def picture(data: bytes, alt: str, kind: str = "png") -> Html:
    """An image inline; ``kind`` as in its media type."""
    return tag("img", src=f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt=alt)


def chart(svg: bytes, caption: str, words: str = "") -> Html:
    """A drawing with its caption."""
    return tag(
        "figure",
        picture(svg, caption, "svg+xml"),
        tag("figcaption", tag("strong", caption), f": {words}" if words else ""),
    )


def section(title: str, *content: Any) -> Html:
    """A part of a page, under its title."""
    return tag("section", tag("h2", title), *content)


def page(title: str, *content: Any) -> str:
    """The whole document. It asks for nothing over the network, not even an icon."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(_STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", *content), lang="en") + "\n"
