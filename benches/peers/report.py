"""The report: what was reached of what was wanted, ratios, all figures, and pictures of how cost grows."""

import datetime
import platform

from perf_analyzer import cpu
from plots import lines
from results import family

# Load, whose figure it is, the peers' load it is held against, the least ratio wanted, whether less is better.
WANTED_OF_EMBED = [
    ("mixed, 32 clients", "ferry served", "mixed, in process", 1.2, False),
    ("mixed, 128 clients", "ferry served", "mixed, in process", 1.2, False),
    ("mixed, in process", "ferry in process", "mixed, in process", 1.2, False),
    ("one text at a time", "ferry served", "one text at a time", 1.0, True),
    ("long, 32 clients", "ferry served", "long, in process", 1.2, False),
    ("long, in process", "ferry in process", "long, in process", 1.2, False),
]


def write(options, results, spent_s):
    setting = {
        "date": datetime.date.today().isoformat(), "machine": cpu(), "system": f"{platform.system()} {platform.machine()}",
        "threads": options.threads, "rounds": options.rounds, "seconds": options.seconds, "quick": options.quick,
        "minutes": round(spent_s / 60, 1), "clients": options.clients, "tokens": options.tokens,
    }
    results.write(options.out, setting)
    parts = ["# Ferry beside its peers", "", *introduction(setting, results), ""]
    if results.loads("embed"):
        parts += ["## Embeddings", "", *wanted_of_embed(results), "", *figures(results, "embed"), "", *quality(results), ""]
    if results.loads("llm"):
        parts += ["## Models that write", "", *wanted_of_llm(results), "", *figures(results, "llm"), ""]
    if results.loads("growth"):
        parts += ["## How cost grows", "", *growth(options, results), ""]
    text = "\n".join(parts)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def introduction(setting, results):
    if setting["quick"]:
        yield "**A quick run, to see that all of it works: no figures to quote.**"
        yield ""
    yield f"- Made on {setting['date']} by `python3 benches/peers/run.py` in {setting['minutes']} minutes, "
    yield f"  {setting['rounds']} rounds, {setting['seconds']:g} s a served measurement; medians of the rounds."
    yield f"- Machine: {setting['machine']}, {setting['system']}, {setting['threads']} threads for each side; clients run on"
    yield "  the same cores. One side runs at a time; who goes first alternates."
    yield "- Ratios are Ferry ÷ peer within a round, the median of the rounds; of times, peer ÷ Ferry, so that above 1"
    yield "  is always in Ferry's favour."
    for name, version in results.versions.items():
        yield f"- {name}: {version}"
    for note in dict.fromkeys(results.notes):
        yield f"- Texts, {note}"
    for side, why in results.skipped.items():
        yield f"- SKIPPED {side}: {why}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def number(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def best(results, stage, load, sides, less_is_better):
    """The side with the best median of those."""
    medians = [(results.median(stage, load, *side), side) for side in sides]
    medians = [one for one in medians if one[0] is not None]
    if not medians:
        return None
    return (min if less_is_better else max)(medians)[1]


def verdict(ratio, wanted):
    return "–" if ratio is None else f"{'✓' if ratio >= wanted else '✕'} ≥ {wanted:g}"


def wanted_of_embed(results):
    """Each of Ferry's precisions against the best peer of the same, in process even where Ferry is served."""
    yield row(["load", "precision", "Ferry", "best peer in process", "its figure", "ratio", "wanted"])
    yield "| --- | --- | ---: | --- | ---: | ---: | --- |"
    for load, side, against, wanted, less in WANTED_OF_EMBED:
        if load not in results.loads("embed"):
            continue
        for ours in [one for one in results.sides("embed", load) if one[0] == side]:
            peers = [
                one for one in results.sides("embed", against)
                if not one[0].startswith("ferry") and results.comparable(ours, one)
            ]
            theirs = best(results, "embed", against, peers, less)
            ratio = theirs and results.ratio("embed", load, ours, theirs, against)
            if ratio and less:
                ratio = 1 / ratio
            name = " ".join(theirs) if theirs else "none of this precision and quality"
            unit = results.unit("embed", load)
            yield row([
                load, ours[1], f"{number(results.median('embed', load, *ours))} {unit}", name,
                number(theirs and results.median("embed", against, *theirs)), number(ratio), verdict(ratio, wanted),
            ])


def wanted_of_llm(results):
    yield row(["load", "Ferry", "best peer", "its figure", "ratio", "wanted"])
    yield "| --- | ---: | --- | ---: | ---: | --- |"
    for load in results.loads("llm"):
        sides = results.sides("llm", load)
        ours = next((one for one in sides if one[0].startswith("ferry")), None)
        if ours is None:
            continue
        theirs = best(results, "llm", load, [one for one in sides if one != ours], False)
        ratio = theirs and results.ratio("llm", load, ours, theirs)
        wanted = 1.2 if load.endswith("streams") else 1.0
        yield row([
            load, f"{number(results.median('llm', load, *ours))} tokens/s", theirs[0] if theirs else "none",
            number(theirs and results.median("llm", load, *theirs)), number(ratio), verdict(ratio, wanted),
        ])


def figures(results, stage):
    """All figures: for each load, each side with its rounds."""
    yield row(["load", "side", "precision", "median", "lowest", "highest", "unit", "best Ferry of this precision ÷ it"])
    yield "| --- | --- | --- | ---: | ---: | ---: | --- | ---: |"
    for load in results.loads(stage):
        unit = results.unit(stage, load)
        less = unit == "ms"
        sides = results.sides(stage, load)
        for side in sides:
            values = results.values(stage, load, *side).values()
            ratio = None
            if not side[0].startswith("ferry"):
                own = [one for one in sides if one[0].startswith("ferry") and family(one[1]) == family(side[1])]
                ours = best(results, stage, load, own, less)
                ratio = ours and results.ratio(stage, load, ours, side)
                ratio = 1 / ratio if ratio and less else ratio
            cells = [number(results.median(stage, load, *side)), number(min(values)), number(max(values))]
            yield row([load, *side, *cells, unit, number(ratio) if ratio else ""])


def quality(results):
    yield "Cosine of a text's vector to that of f32, over texts of mixed length:"
    yield ""
    yield row(["side", "precision", "mean", "least"])
    yield "| --- | --- | ---: | ---: |"
    for (side, precision), found in results.cosines.items():
        yield row([side, precision, f"{found['mean']:.5f}", f"{found['least']:.5f}"])


def growth(options, results):
    for what, x, y in [
        ("length", "tokens of a text", "tokens/s"), ("streams", "streams at a time", "tokens/s"),
        ("models", "models at a time", "texts/s"),
    ]:
        loads = [load for load in results.loads("growth") if load.startswith(f"{what} ")]
        if not loads:
            continue
        sides = list(dict.fromkeys(side for load in loads for side in results.sides("growth", load)))
        at = [int(load.rpartition(" ")[2]) for load in loads]
        series = []
        yield f"### Against {what}"
        yield ""
        yield row([f"{y} by side", "precision", *map(str, at)])
        yield "| --- | --- |" + " ---: |" * len(at)
        for side in sides:
            medians = [results.median("growth", load, *side) for load in loads]
            yield row([*side, *map(number, medians)])
            points = [(place, value) for place, value in zip(at, medians) if value is not None]
            series.append((" ".join(side), points))
        path = options.out.with_name(f"{options.out.name}-{what}.svg")
        path.write_text(lines(f"Throughput against {what}", x, y, series), encoding="utf-8")
        yield ""
        yield f"![Throughput against {what}]({path.name})"
        yield ""
