"""Keep a full stop with the formula that it follows.

A browser may break a line between an inline formula and the next letter, since the formula is a
picture to it: a comma would begin a line, or a bracket end one.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.typing import ExtensionMetadata

_AFTER = re.compile(r"[.,;:!?)\]’”]+")
_BEFORE = re.compile(r"[(\[‘“]+$")


def glue(math: nodes.math) -> None:
    """Put an inline formula into one unbreakable piece with the marks on its sides."""
    parent, place = math.parent, math.parent.index(math)
    before = _text(parent[place - 1]) if place else ""
    after = _text(parent[place + 1]) if place + 1 < len(parent) else ""
    left, right = _BEFORE.search(before), _AFTER.match(after)
    if left is None and right is None:
        return
    piece = nodes.inline("", "", math.deepcopy(), classes=["glued"])
    pieces: list[nodes.Node] = [piece]
    first = last = place
    if left is not None:
        first -= 1
        pieces.insert(0, nodes.Text(before[: left.start()]))
        piece.insert(0, nodes.Text(left[0]))
    if right is not None:
        last += 1
        pieces.append(nodes.Text(after[right.end() :]))
        piece += nodes.Text(right[0])
    parent[first : last + 1] = pieces


def _text(node: nodes.Node) -> str:
    return str(node) if isinstance(node, nodes.Text) else ""


class GluePunctuation(SphinxPostTransform):
    """Glue every inline formula of a page to its punctuation."""

    default_priority = 400
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Go through the page's formulas."""
        for math in list(self.document.findall(nodes.math)):
            glue(math)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the transform."""
    app.add_post_transform(GluePunctuation)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
