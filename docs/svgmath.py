"""Formulas as pictures in the page, drawn when it is built: no script, no font, no network."""

from xml.etree import ElementTree

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

SIZE = 16.0  # What 1 em is drawn as, in units of the pictures.


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer as ``html_math_renderer = "svg"``."""
    ziamath.config.svg2 = False  # Every picture holds its own glyphs.
    app.add_html_math_renderer("svg", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _drawn(tex: str, *, inline: bool) -> str:
    tex = tex.strip()
    formula = ziamath.Latex(tex, size=SIZE, color="currentColor", inline=inline)
    svg = formula.svgxml()
    for side in ("width", "height"):
        svg.set(side, f"{float(svg.get(side)) / SIZE:.3f}em")
    svg.set("style", f"vertical-align: {formula.getyofst() / SIZE:.3f}em")
    svg.set("role", "img")
    svg.set("aria-label", tex)
    return ElementTree.tostring(svg, encoding="unicode")


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_drawn(node.astext(), inline=True)}</span>')
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    # Formulas that stand beside each other wrap as words do.
    parts = [_drawn(tex, inline=False) for tex in node.astext().split(r"\qquad")]
    translator.body.append(f'<div class="math">{"".join(parts)}</div>')
    raise nodes.SkipNode
