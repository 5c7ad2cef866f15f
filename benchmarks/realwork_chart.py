"""A bar chart in SVG, for realwork.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#2a78b5", "#e0a030", "#b03a48")
WIDTH, LEFT, BAR, GAP, TOP = 720, 130, 10, 10, 40


def chart(bars: Mapping[str, Mapping[str, float]], ways: Sequence[str]) -> str:
    """Ratios to native by row and way, on a logarithmic scale; the line at 1 is native."""
    most = max(max(row.values()) for row in bars.values())
    low, high = math.log(0.5), math.log(max(most, 2) * 1.15)

    def x(ratio: float) -> float:
        return LEFT + (math.log(max(ratio, 0.5)) - low) / (high - low) * (WIDTH - LEFT - 50)

    height = TOP + len(bars) * (len(ways) * BAR + GAP) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for index, way in enumerate(ways):
        at = LEFT + index * 90
        out.append(f'<rect x="{at}" y="10" width="10" height="10" fill="{COLOURS[index]}"/>')
        out.append(f'<text x="{at + 14}" y="19">{escape(way)}</text>')
    for ratio in (1, 2, 5, 10, 20, 50):
        if math.log(ratio) <= high:
            out.append(
                f'<line x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="{TOP - 8}" y2="{height - 16}" '
                f'stroke="{"black" if ratio == 1 else "#cccccc"}"/>'
                f'<text x="{x(ratio):.1f}" y="{height - 4}" text-anchor="middle">{ratio}x</text>'
            )
    y = TOP
    for name, row in bars.items():
        middle = y + len(ways) * BAR / 2 + 4
        out.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>')
        for index, way in enumerate(ways):
            start, end = sorted((x(1), x(row[way])))
            out.append(
                f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" '
                f'height="{BAR - 1}" fill="{COLOURS[index]}"/>'
                f'<text x="{max(end, x(1)) + 4:.1f}" y="{y + 8}" font-size="9">'
                f"{row[way]:.2f}</text>"
            )
            y += BAR
        y += GAP
    return "\n".join([*out, "</svg>"]) + "\n"
