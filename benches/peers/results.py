"""Figures of all rounds, the ratios within each, and how they are written: Markdown, CSV, JSON, SVG."""

import csv
import json
import statistics
from dataclasses import asdict, dataclass

from environment import ROOT


@dataclass
class Figure:
    stage: str  # embed, llm, growth
    load: str  # what was measured, the same for all who did it
    side: str  # who did it; "ferry …" for Ferry
    precision: str
    round: int
    value: float
    unit: str


class Results:
    def __init__(self):
        self.figures, self.skipped, self.versions, self.cosines, self.notes = [], {}, {}, {}, []

    def add(self, stage, load, side, precision, round_, value, unit):
        self.figures.append(Figure(stage, load, side, precision, round_, value, unit))
        print(f"  {load}: {side} {precision} {value:.1f} {unit}", flush=True)

    def skip(self, side, why):
        why = str(why).replace(f"{ROOT}/", "")
        if side not in self.skipped:
            print(f"  SKIPPED {side}: {why}", flush=True)
        self.skipped[side] = why

    def loads(self, stage):
        return list(dict.fromkeys(one.load for one in self.figures if one.stage == stage))

    def sides(self, stage, load):
        of = [one for one in self.figures if (one.stage, one.load) == (stage, load)]
        return list(dict.fromkeys((one.side, one.precision) for one in of))

    def values(self, stage, load, side, precision):
        """By round."""
        wanted = (stage, load, side, precision)
        of = [one for one in self.figures if (one.stage, one.load, one.side, one.precision) == wanted]
        return {one.round: one.value for one in of}

    def median(self, stage, load, side, precision):
        values = self.values(stage, load, side, precision)
        return statistics.median(values.values()) if values else None

    def unit(self, stage, load):
        return next(one.unit for one in self.figures if (one.stage, one.load) == (stage, load))

    def ratio(self, stage, load, ours, theirs, baseline=None):
        """The median, over the rounds, of Ferry's figure over the peer's of the same round.

        `baseline` is the load of the peer's figure where that is another, such as in process."""
        mine = self.values(stage, load, *ours)
        other = self.values(stage, baseline or load, *theirs)
        ratios = [mine[round_] / other[round_] for round_ in mine if other.get(round_)]
        return statistics.median(ratios) if ratios else None

    def comparable(self, ours, theirs):
        """Whether two sides compute at one precision, and the peer's vectors are no worse."""
        if family(ours[1]) != family(theirs[1]):
            return False
        mine, other = self.cosines.get(ours), self.cosines.get(theirs)
        return mine is None or other is None or other["mean"] >= mine["mean"] - 0.001

    def write(self, out, setting):
        out.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "setting": setting, "versions": self.versions, "skipped": self.skipped, "notes": self.notes,
            "cosines": [{"side": side, "precision": precision, **found} for (side, precision), found in self.cosines.items()],
            "figures": [asdict(one) for one in self.figures],
        }
        out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        with open(out.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Figure.__dataclass_fields__), lineterminator="\n")
            writer.writeheader()
            writer.writerows({**asdict(one), "value": f"{one.value:.3f}"} for one in self.figures)


def family(precision):
    """f32, bf16 or int8."""
    for name in ("int8", "bf16", "f32"):
        if precision.startswith(name):
            return name
    return "int8" if precision.startswith("q8") else precision
