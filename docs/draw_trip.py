"""Draws docs/trip.svg, the README's picture: the trip of the data, and one model on eight ranks."""

from pathlib import Path

BOX = '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{fill}" stroke="#334155" stroke-width="1.2"/>'
TEXT = (
    '<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="{color}" font-weight="{weight}">{text}</text>'
)
ARROW = '<path d="M{x0} {y} H{x1}" stroke="#334155" stroke-width="1.6" marker-end="url(#tip)" fill="none"/>'
TRIP = [
    ("raw text", "JSONL, a document a line"),
    ("tokenizer/", "text → ids"),
    ("data/", ".bin/.idx → sample i"),
    ("model on ranks", "forward, backward, step"),
    ("checkpoint/", "global names and boxes"),
    ("any layout", "resume, measure, generate"),
]
STAGES = ("embedding, layers 0, 1", "layers 2, 3, norm, head")
COLORS = {"trip": "#e0f2fe", "rank": ("#dcfce7", "#fef9c3"), "data": "#f8fafc"}


def text(x: float, y: float, words: str, size: int = 12, color: str = "#0f172a", weight: str = "normal") -> str:
    return TEXT.format(x=x, y=y, text=words, size=size, color=color, weight=weight)


def trip() -> list[str]:
    parts = []
    for i, (name, what) in enumerate(TRIP):
        x = 12 + i * 162
        parts += [
            BOX.format(x=x, y=14, w=140, h=50, fill=COLORS["trip"]),
            text(x + 70, 35, name, 14, weight="bold"),
            text(x + 70, 53, what, 9),
        ]
        if i:
            parts.append(ARROW.format(x0=x - 22, x1=x - 4, y=39))
    return parts


def ranks() -> list[str]:
    """Two copies of the model, each two stages, each stage two halves of every matrix."""
    parts = []
    for dp in range(2):
        top = 92 + dp * 116
        parts += [
            BOX.format(x=12, y=top, w=950, h=104, fill=COLORS["data"]),
            text(72, top + 48, f"dp {dp}", 14, weight="bold"),
            text(72, top + 66, "its own samples", 10),
        ]
        for pp, layers in enumerate(STAGES):
            x = 140 + pp * 420
            parts.append(text(x + 180, top + 18, f"stage {pp}: {layers}", 11, weight="bold"))
            for tp in range(2):
                rank, left = pp * 4 + dp * 2 + tp, x + tp * 184
                parts += [
                    BOX.format(x=left, y=top + 26, w=174, h=66, fill=COLORS["rank"][tp]),
                    text(left + 87, top + 50, f"rank {rank}: pp {pp} dp {dp} tp {tp}", 12, weight="bold"),
                    text(left + 87, top + 68, f"{'first' if tp == 0 else 'second'} half of every matrix", 10),
                    text(left + 87, top + 83, "half of the optimizer state", 10),
                ]
        parts.append(ARROW.format(x0=500, x1=554, y=top + 58))
        parts.append(text(529, top + 50, "F3, B2 …", 10))
    parts.append(text(487, 340, "TP sums inside a stage · PP sends between stages · DP sums between copies · "
                      "the loss, every gradient and every weight equal the one-process run", 12))  # fmt: skip
    return parts


def main() -> None:
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 974 352" font-family="Helvetica, Arial, sans-serif">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#334155"/></marker></defs><rect width="974" height="352" fill="white"/>'
    )
    body = "\n".join([head, *trip(), *ranks(), "</svg>"])
    Path(__file__).with_name("trip.svg").write_text(body + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
