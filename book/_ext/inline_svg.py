"""Put a notebook's SVG figures into the page itself, where they take the page's colours.

`pkg.plotting` draws text and axes in `#1f2328` on a white ground. Here the ink becomes the
reader's text colour and the ground goes, so that one picture reads in light and in dark. A figure
without a caption or alternative text warns.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)

INK = "#1f2328"
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_WHITE = re.compile(r"fill:\s*(?:#ffffff|#fff|white)\b", re.IGNORECASE)
_UNIVERSAL = re.compile(r"^\s*\*\s*\{([^{}]*)\}\s*$")

ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def inline(svg: str, alt: str, prefix: str) -> str:
    """Return `svg` made fit to stand inside an HTML page.

    Parameters
    ----------
    svg
        The whole text of an SVG file as matplotlib writes it.
    alt
        What a reader who cannot see it is told.
    prefix
        Put before every id inside it; must be unique on the page.

    Raises
    ------
    ValueError
        If `svg` is not an SVG document, or brings a style sheet that would reach the page.
    """
    try:
        root = ET.fromstring(svg)
    except ET.ParseError as error:
        raise ValueError(f"svg: an SVG document was expected; {error}") from error
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError(f"svg: the root element is {root.tag!r}, not svg")
    _strip(root)
    _absorb_styles(root)
    _ground(root)
    for element in root.iter():
        _rename(element, prefix)
        for name in ("style", "fill", "stroke", "color"):
            if INK in element.get(name, "").lower():
                element.set(name, re.sub(INK, "currentColor", element.get(name, ""), flags=re.I))
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("class", "figure-svg")
    for name in ("version", "id"):
        root.attrib.pop(name, None)
    return ET.tostring(root, encoding="unicode")


def _strip(root: ET.Element) -> None:
    """Drop metadata and titles: the caption and the alternative text say what it is."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}title"):
                parent.remove(child)


def _absorb_styles(root: ET.Element) -> None:
    """Move matplotlib's `* { ... }` onto the root: in a page it would style everything."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag != f"{{{SVG}}}style":
                continue
            rule = _UNIVERSAL.match(child.text or "")
            if rule is None:
                raise ValueError("svg: its style sheet has more than a rule for *")
            root.set("style", f"{root.get('style', '')};{rule.group(1).strip()}".strip(";"))
            parent.remove(child)


def _ground(root: ET.Element) -> None:
    """Make the figure's background, matplotlib's first patch, transparent."""
    for group in root.iter(f"{{{SVG}}}g"):
        if group.get("id", "").endswith("patch_1"):
            for path in group.iter(f"{{{SVG}}}path"):
                path.set("style", _WHITE.sub("fill: none", path.get("style", "")))
            return


def _rename(element: ET.Element, prefix: str) -> None:
    if element.get("id"):
        element.set("id", prefix + element.get("id", ""))
    for name, value in list(element.attrib.items()):
        if name in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
            element.set(name, f"#{prefix}{value[1:]}")
        elif "url(#" in value:
            element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))


class InlineFigures(SphinxPostTransform):
    """Replace the SVG pictures of a notebook's outputs by their source."""

    default_priority = 6  # just after myst-nb has chosen which form of an output is shown
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Judge every picture of the notebook's outputs, and inline the SVG ones."""
        number = 0
        for image in list(self.document.findall(nodes.image)):
            if "jupyter_execute" not in image.get("uri", ""):
                continue
            figure = _figure(image)
            what = figure["names"][0] if figure is not None and figure["names"] else "a figure"
            where = (self.env.docname, image.line or (figure.line if figure is not None else None))
            if not image.get("alt"):
                logger.warning("%s has no alternative text (image.alt)", what, location=where)
            if figure is None or not any(isinstance(c, nodes.caption) for c in figure.children):
                logger.warning("%s has no caption (figure.caption)", what, location=where)
            if not image["uri"].endswith(".svg"):
                continue
            path = Path(self.env.srcdir) / image["uri"]
            number += 1
            try:
                source = inline(path.read_text("utf-8"), image.get("alt", ""), f"fig{number}-")
            except ValueError as error:
                logger.warning("%s cannot be put into the page: %s", what, error, location=where)
                continue
            image.replace_self(nodes.raw("", source, format="html"))


def _figure(node: nodes.Node) -> nodes.figure | None:
    parent = node.parent
    while parent is not None and not isinstance(parent, nodes.figure):
        parent = parent.parent
    return parent


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the transform."""
    app.add_post_transform(InlineFigures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
