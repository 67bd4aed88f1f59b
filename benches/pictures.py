"""Pictures of the benches in Python as SVG files that need nothing else. Standard library only."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 380, 70, 690, 44, 50
COLOURS = ["#2f6fb2", "#c2571a", "#1a7f4b", "#8a4fb0", "#9a7400"]
STYLE = """<style>
svg { font: 14px system-ui, sans-serif; } .back { fill: #fff; } text { fill: #444; }
.grid { stroke: #ddd; } .axis { stroke: #777; } .title { font-weight: 600; font-size: 16px; }
@media (prefers-color-scheme: dark) { .back { fill: #161b22; } text { fill: #c9d1d9; } .grid { stroke: #30363d; } }
</style>"""


def over_time(title, x_name, series, marks=False, ceiling=None):
    """Lines over two linear axes from 0; `series` has a list of (x, y) for each name. With `marks`, points are
    marked; `ceiling` draws a line across, as (name, y)."""
    points = [point for of in series.values() for point in of] + ([(0, ceiling[1])] if ceiling else [])
    most_x, most_y = max(x for x, _ in points), max(y for _, y in points) * 1.08 or 1.0
    base = HEIGHT - BOTTOM
    across = lambda x: LEFT + x / most_x * (RIGHT - LEFT)  # noqa: E731
    up = lambda y: base - y / most_y * (base - TOP)  # noqa: E731
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        STYLE, f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
    ]
    for tick in ticks(most_y):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{up(tick) + 5:.1f}" text-anchor="end">{tick:,.4g}</text>')
    for tick in ticks(most_x):
        out.append(f'<text x="{across(tick):.1f}" y="{base + 20}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{base}" y2="{base}"/>')
    out.append(f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    names = list(series)
    if ceiling:
        y = up(ceiling[1])
        out.append(f'<line stroke="#888" stroke-dasharray="5 4" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{RIGHT + 6}" y="{y + 5:.1f}">{escape(ceiling[0])}</text>')
    for at, name in enumerate(names):
        colour = COLOURS[at % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in series[name])
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        for x, y in series[name] if marks else ():
            out.append(f'<circle fill="{colour}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5"><title>{escape(name)}: {y:,.4g} at {x:g}</title></circle>')
        line = base - 20 * (len(names) - at)
        out.append(f'<line stroke="{colour}" stroke-width="2" x1="{RIGHT + 14}" x2="{RIGHT + 38}" y1="{line}" y2="{line}"/>')
        out.append(f'<text x="{RIGHT + 44}" y="{line + 5}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def ticks(most):
    rough = most / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * at for at in range(int(most / step) + 1)]
