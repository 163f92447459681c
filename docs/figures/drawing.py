"""A few SVG shapes on a light panel, which can be read on light and dark pages: boxes, arrows, words, a legend."""

from html import escape

INK = "#1e293b"
BLUE = "#dbeafe"
GREEN = "#dcfce7"
YELLOW = "#fef3c7"
RED = "#fee2e2"
GREY = "#e2e8f0"
WHITE = "#ffffff"
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
)


class Drawing:
    """Collects shapes; `svg` gives the file's text. Lengths are in pixels, y grows downwards."""

    def __init__(self, width: int, height: int, description: str):
        self.has_legend = False
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(description)}</title>",
            TIP,
            f'<rect width="{width}" height="{height}" rx="10" fill="#fbfdff" stroke="#cbd5e1"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 12,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{INK}"{weight}>'
            f"{escape(words)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: str = "",
        fill: str = WHITE,
        size: int = 12,
        bold: bool = True,
    ) -> None:
        """`lines` are separated by newlines; with `bold` the first one is a title."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{INK}"/>'
        )
        rows = lines.split("\n") if lines else []
        step = size + 4
        first = y + height / 2 - step * (len(rows) - 1) / 2 + size * 0.35
        for number, row in enumerate(rows):
            is_title = bold and number == 0
            self.text(
                x + width / 2,
                first + number * step,
                row,
                size if is_title else size - 1,
                bold=is_title,
            )

    def arrow(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        words: str = "",
        dashed: bool = False,
        above: float = 6,
    ) -> None:
        """From (x0, y0) to (x1, y1); `words` stand `above` its middle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="M{x0:g} {y0:g} L{x1:g} {y1:g}" stroke="{INK}" stroke-width="1.5"{dash} fill="none" '
            'marker-end="url(#tip)"/>'
        )
        if words:
            self.text((x0 + x1) / 2, (y0 + y1) / 2 - above, words, 11)

    def legend(self, x: float, y: float, entries: list[tuple[str, str]]) -> None:
        """Squares with words in one row; a fill of "->" or "-->" is an arrow, drawn or dashed."""
        self.has_legend = True
        for fill, words in entries:
            if fill in ("->", "-->"):
                self.arrow(x, y + 6, x + 22, y + 6, dashed=fill == "-->")
            else:
                self.box(x + 4, y, 14, 12, fill=fill)
            self.text(x + 28, y + 10, words, 11, anchor="start")
            x += 46 + 5.8 * len(words)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"
