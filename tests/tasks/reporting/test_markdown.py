"""Labels, error texts and reasons in Markdown, as a reader of CommonMark shows them."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from tasks.reporting.markdown import code, table, text

WORDS = [
    "<script>alert(1)</script>", "two\nlines\r\n# and a heading", "| a | b |", "`x` and ``y``",
    "*bold* _it_ **b** ~~s~~",
    "[link](javascript:alert(1))", "![image](http://x/y.png)", "&lt;b&gt; &copy;", "back\\slash\\", "ends with `",
    "a_b_c",
    "yes | <b>good</b> 😀/`x`", "\x1b[31mred\u2028line",
]  # fmt: skip


def shown(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def one_line(value: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\u2028]", " ", value).split())


@pytest.mark.parametrize("words", WORDS)
def test_words_of_others_stand_as_they_are(words: str) -> None:
    assert shown(f"so: {text(words)} it is") == f"<p>so: {html.escape(one_line(words), quote=False)} it is</p>\n"
    assert html.unescape(shown(code(words))) == f"<p><code>{one_line(words)}</code></p>\n"
    cells = re.findall("<td>(.*)</td>", shown(table(["a", "b"], [[words, "1"]])))
    assert cells == [html.escape(one_line(words), quote=False), "1"]
