"""The twelve chapters, and the directive `chapter-table` that lists them on the landing page.

A chapter whose notebook is in the table of contents becomes a link by itself; until then it is
shown as in preparation.
"""

from __future__ import annotations

from dataclasses import dataclass

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from book._ext.markup import Cell, document_link, plain_table


@dataclass(frozen=True)
class Chapter:
    """One chapter: its slug names all its files."""

    slug: str
    title: str
    part: str
    derives: str

    @property
    def docname(self) -> str:
        """The chapter's document on the site."""
        return f"book/chapters/{self.slug}"


PARTS = {
    "I": "Arithmetic and memory",
    "II": "Seeing",
    "III": "Generating",
    "IV": "Decoding",
}

CHAPTERS = (
    Chapter(
        "mixed_precision",
        "IEEE 754 and mixed precision",
        "I",
        "Rounding, subnormal numbers, and why loss scaling saves small gradients",
    ),
    Chapter(
        "flash_attention",
        "From online softmax to FlashAttention",
        "I",
        "Attention in one pass over the keys, forward and backward, and its memory traffic",
    ),
    Chapter(
        "dilated_convolution",
        "Dilated convolution",
        "I",
        "Receptive fields, output sizes, and which dilation rates leave holes",
    ),
    Chapter(
        "segmentation_metrics",
        "Segmentation metrics",
        "II",
        "Pixel accuracy, IoU, Dice and their kin: how they are tied, and where they disagree",
    ),
    Chapter(
        "segment_anything",
        "Segment Anything",
        "II",
        "Prompts to masks: the decoder, focal and Dice loss, the stability score",
    ),
    Chapter(
        "two_stream",
        "Two-stream action recognition",
        "II",
        "Fusing appearance and motion: logits or probabilities, and inflated filters",
    ),
    Chapter(
        "coupling_flows",
        "Coupling flows: NICE, RealNVP, Glow",
        "III",
        "Invertible layers, their log-determinants, and bits per dimension",
    ),
    Chapter(
        "rectified_flow",
        "From normalizing flows to rectified flow",
        "III",
        "The continuity equation, flow matching, and the straight path",
    ),
    Chapter(
        "stable_diffusion_3",
        "Stable Diffusion 3",
        "III",
        "Timestep densities, the resolution shift, and the joint transformer",
    ),
    Chapter(
        "speculative_decoding",
        "Speculative decoding",
        "IV",
        "Why rejection keeps the target's law exactly, and how much time it saves",
    ),
    Chapter(
        "medusa",
        "Medusa",
        "IV",
        "Several heads, a tree of candidates, and typical acceptance",
    ),
    Chapter(
        "multi_token_prediction",
        "Multi-token prediction",
        "IV",
        "Losses over several tokens ahead, their memory, and their alignment",
    ),
)

TITLES = {chapter.slug: chapter.title for chapter in CHAPTERS}


def slug_of(docname: str) -> str:
    """Return the slug of a chapter's document."""
    return docname.rsplit("/", 1)[-1]


def title_of(docname: str) -> str:
    """Return the title of a chapter's document; of another one its slug."""
    return TITLES.get(slug_of(docname), slug_of(docname))


class ChapterTable(SphinxDirective):
    """`{chapter-table}`: part, title, and what each chapter derives."""

    def run(self) -> list[nodes.Node]:
        """Return the table; a chapter that is not in the book yet gets no link."""
        rows: list[list[Cell]] = []
        for chapter in CHAPTERS:
            title: list[nodes.Node] = [nodes.inline("", chapter.title, classes=["chapter-title"])]
            if chapter.docname in self.env.found_docs:
                title = [document_link(chapter.docname, chapter.title, self.env.docname)]
            else:
                title += [
                    nodes.Text(" "),
                    nodes.inline("", "in preparation", classes=["in-preparation"]),
                ]
            part: Cell = [nodes.Text(f"{chapter.part} {PARTS[chapter.part]}")]
            rows.append([part, title, [nodes.Text(chapter.derives)]])
        table = plain_table(
            ["Part", "Chapter", "What it derives"], rows, "chapters", label="The twelve chapters"
        )
        return [table]


def _outdated(
    app: Sphinx, env: object, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Read the landing page again when a chapter appears or goes."""
    del env, changed
    chapters = {chapter.docname for chapter in CHAPTERS}
    return [app.config.root_doc] if (added | removed) & chapters else []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("chapter-table", ChapterTable)
    app.connect("env-get-outdated", _outdated)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
