"""From what was measured to rows: medians of rates, and ratios round by round.

A ratio compares what two took in the same round, so that what slows the machine for a while slows both; it is
the median of these quotients, with their quartiles. Only who raced together has common rounds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.speed.plan import PEAKS

Record = Mapping[str, Any]  # of results.record
Row = dict[str, Any]
KEY = ("row", "model", "device", "precision")


@dataclass(frozen=True)
class Entry:
    """A contender at a task, over all races that it took part in.

    rounds  by the number of the race, the seconds of a step in each round
    told    what the last race's record says of it
    """

    rounds: Mapping[int, Sequence[float]]
    told: Mapping[str, Any]

    @property
    def seconds(self) -> list[float]:
        return [second for race in self.rounds.values() for second in race]

    @property
    def typical(self) -> float:
        return median(self.seconds)


def rows(races: Iterable[Record]) -> list[Row]:
    """One for each of ours (eager, compiled) at each task, in the order in which tasks were first measured."""
    races = list(races)
    highest = {precision: max(found.values()) for precision, found in peaks(races).items()}
    made = []
    for same in grouped(race for race in races if race["row"] not in PEAKS):
        fastest = by_label(entries(same).values())
        ours = [label for label in fastest if label.startswith("ours")]
        made += [row(same[0], label, fastest, highest.get(same[0]["precision"])) for label in ours]
    times_training(made)
    return made


def grouped(races: Iterable[Record]) -> list[list[Record]]:
    """Those of one row together."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for race in races:
        found.setdefault(tuple(race[name] for name in KEY), []).append(race)
    return list(found.values())


def entries(races: Sequence[Record]) -> dict[str, Entry]:
    """By name."""
    names = dict.fromkeys(name for race in races for name in race["contenders"])
    return {name: entry(name, races) for name in names}


def entry(name: str, races: Sequence[Record]) -> Entry:
    told = {i: race["contenders"][name] for i, race in enumerate(races) if name in race["contenders"]}
    return Entry({i: one["seconds"] for i, one in told.items()}, list(told.values())[-1])


def by_label(known: Iterable[Entry]) -> dict[str, Entry]:
    """Who stands for each label: who came furthest, and of several the fastest."""
    best: dict[str, Entry] = {}
    for one in known:
        label = one.told["label"]
        if label not in best or standing(one) < standing(best[label]):
            best[label] = one
    return best


def standing(one: Entry) -> tuple[int, float]:
    """The less the better."""
    return -max(len(race) for race in one.rounds.values()), one.typical


def quotients(above: Entry, below: Entry) -> list[float]:
    """Of the seconds of two, round by round."""
    common = [i for i in above.rounds if i in below.rounds]
    return [a / b for i in common for a, b in zip(above.rounds[i], below.rounds[i], strict=False)]


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Their median and quartiles; None of nothing."""
    if not values:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "quartiles": [low, high]}


def row(race: Record, label: str, fastest: Mapping[str, Entry], peak: float | None) -> Row:
    """Rates in the unit of the race. `ratios` are how many times a peer's rate ours is, and for the floor how
    many times its time ours takes."""
    mine, floor = fastest[label], fastest.get("floor")
    peers = {name: one for name, one in fastest.items() if name != "floor" and not name.startswith("ours")}
    shown = {"ours": mine, **peers}
    ratios = {name: spread(quotients(one, mine)) for name, one in peers.items()}
    ratios |= {"floor": spread(quotients(mine, floor))} if floor else {}
    rates = {name: rate(race, one) for name, one in shown.items()}
    flops = mine.told["flops"]
    return {
        **{name: race[name] for name in (*KEY, "unit")},
        "ours": rates.pop("ours"),
        "peers": rates,
        "floor_ratio": ratios["floor"]["median"] if ratios.get("floor") else None,
        "ratios": {name: found for name, found in ratios.items() if found},
        "peak_memory_mb": mine.told["peak_memory_mb"],
        "peers_peak_memory_mb": {name: one.told["peak_memory_mb"] for name, one in peers.items()},
        "compiled": mine.told["compiled"],
        "batch": race["batch"],
        "settings": {name: one.told["setting"] for name, one in shown.items()},
        "first_step_seconds": {name: one.told["first_step_seconds"] for name, one in shown.items()},
        "flops_per_image": {name: one.told["flops"] for name, one in shown.items() if one.told["flops"]},
        "share_of_peak": flops * rate(race, mine) / peak / 1e9 if flops and peak else None,
    }


def rate(race: Record, one: Entry) -> float:
    """Images a second; of what is told in seconds, the seconds."""
    return one.typical if race["unit"] == "seconds" else float(race["batch"] / one.typical)


def peaks(races: Iterable[Record]) -> dict[str, dict[str, float]]:
    """GFLOP/s of the large product and convolution, by precision."""
    found: dict[str, dict[str, float]] = {}
    for same in grouped(race for race in races if race["row"] in PEAKS):
        for one in entries(same).values():
            rates = found.setdefault(same[0]["precision"], {})
            rates[same[0]["row"]] = one.told["flops"] / one.typical / 1e9
    return found


def times_training(made: list[Row]) -> None:
    """Tell each row of a loader how many times it delivers what training consumes."""
    for loader in (row for row in made if row["row"] == "loader"):
        trained = [row for row in made if row["row"] in ("train_step", "train_loop", "epoch")]
        consumers = [row["ours"] for row in trained if row["model"] == loader["model"]]
        loader["times_training"] = loader["ours"] / max(consumers) if consumers else None
