"""Formulas of the site as MathML, which browsers draw by themselves: no script, no network."""

import re
from html import unescape

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_) -> str:
    """Called by MkDocs with each page that it has made of Markdown."""

    def drawn(formula: re.Match) -> str:
        return convert(unescape(formula[2]), display="block" if formula[1] == "div" else "inline")

    return FORMULA.sub(drawn, html)
