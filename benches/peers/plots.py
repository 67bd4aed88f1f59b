"""A picture of lines as an SVG file that needs nothing else; light and dark by the reader's own setting."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 900, 460, 70, 40, 50, 270
COLOURS = ["#2f6fb2", "#c2571a", "#1a7f4b", "#8a4fb0", "#9a7400", "#b03a63", "#3a8f9a", "#6b6b6b"]
DASHES = ["", "6 4", "2 3"]
STYLE = """<style>
svg { font: 14px system-ui, sans-serif; } .back { fill: #fff; } text { fill: #444; }
.grid { stroke: #ddd; } .axis { stroke: #777; } .title { font-weight: 600; font-size: 16px; }
@media (prefers-color-scheme: dark) { .back { fill: #161b22; } text { fill: #c9d1d9; } .grid { stroke: #30363d; } }
</style>"""


def lines(title, x_name, y_name, series):
    """Lines over a logarithmic axis; `series` is (name, [(x, y)]) pairs."""
    points = [point for _, of in series for point in of]
    if not points:
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"/>\n'
    xs = sorted({x for x, _ in points})
    low, high = xs[0], max(xs[-1], xs[0] * 2)
    top = max(y for _, y in points) * 1.05 or 1.0
    right, base = WIDTH - LEGEND, HEIGHT - BOTTOM

    def across(x):
        return LEFT + math.log(x / low) / math.log(high / low) * (right - LEFT)

    def up(y):
        return base - y / top * (base - TOP)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        STYLE, f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}, {escape(y_name)}</text>',
    ]
    for tick in ticks(top):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{up(tick) + 5:.1f}" text-anchor="end">{tick:,.4g}</text>')
    for x in xs:
        out.append(f'<text x="{across(x):.1f}" y="{base + 20}" text-anchor="middle">{x:g}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    out.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    for at, (name, of) in enumerate(series):
        colour, dash = COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % len(DASHES)]
        # Ferry's lines stand out.
        style = f'stroke="{colour}" stroke-width="{3 if name.startswith("ferry") else 1.5}" stroke-dasharray="{dash}"'
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in sorted(of))
        out.append(f'<polyline fill="none" {style} points="{path}"/>')
        for x, y in of:
            told = f"<title>{escape(name)}: {y:,.1f} at {x:g}</title>"
            out.append(f'<circle fill="{colour}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3">{told}</circle>')
        line = TOP + 12 + 20 * at
        out.append(f'<line {style} x1="{right + 14}" x2="{right + 38}" y1="{line}" y2="{line}"/>')
        out.append(f'<text x="{right + 44}" y="{line + 5}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def ticks(top):
    rough = top / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * at for at in range(int(top / step) + 1)]
