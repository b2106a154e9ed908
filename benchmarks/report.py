"""Writes results.json as the tables and the plot of README.md."""

import json
from pathlib import Path
from statistics import mean

import seaborn

from vaelib.budget import MACHINES
from vaelib.figures import Figure

HERE = Path(__file__).parent
WHO = {
    "plain": "plain loop", "pythae": "pythae", "vaelib": "`vaelib train`", "warm": "the same, warm",
}  # fmt: skip
BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean, and lowest to highest where there are several."""
    if not values:
        return ""
    if len(values) == 1:
        return format(values[0], form)
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def load_of(runs: list[dict]) -> str:
    """The highest foreign load among some runs, in cores; bold where it can matter."""
    if not all("foreign" in run for run in runs):
        return "not measured"
    foreign = max(run["foreign"] for run in runs)
    return f"**{foreign:.2f}**" if foreign > 0.1 else f"{foreign:.2f}"


def nats_table(found: dict) -> str:
    """A table for each kind of processor, and what `vaelib train` chose in each time."""
    parts = [
        "Test -ELBO in nats (10,000 digits, dynamically binarised, one draw), mean and range of "
        "the seeds, after so many seconds of wall clock from the return key, with an empty "
        "cache of compiled code (but where it says warm). The command is "
        "`vaelib train --data mnist --minutes M`, no more."
    ]
    for kind in dict.fromkeys(key.split()[0] for key in found):
        rows, told = [], []
        shown = [who for who in WHO if any(key.startswith(f"{kind} {who} ") for key in found)]
        for seconds in sorted({int(k.split()[2]) for k in found if k.split()[0] == kind}):
            runs = {who: found.get(f"{kind} {who} {seconds}", []) for who in shown}
            nats = {who: [run["nats"] for run in some] for who, some in runs.items()}
            gap = mean(nats["plain"]) - mean(nats["vaelib"]) if nats.get("plain") else None
            wall = max(run["wall"] for run in runs["vaelib"])
            ahead = "" if gap is None else f"{gap:.1f}"
            rows.append(
                [seconds, len(nats["vaelib"]), *map(spread, nats.values()), ahead, f"{wall:.1f}",
                 load_of([run for some in runs.values() for run in some])]
            )  # fmt: skip
            told.append("- " + runs["vaelib"][0]["chosen"])
        head = ["seconds", "seeds", *(WHO[who] for who in shown), "ahead of the plain loop"]
        head += ["its wall time at most, s", "foreign load"]
        parts += [f"On {MACHINES[kind]}:", table(head, rows), "\n".join(told)]
    if several_times(found):
        parts.append(f"![test -ELBO against seconds](nats-{next(iter(found)).split()[0]}.png)")
    return "\n\n".join(parts)


def several_times(found: dict) -> bool:
    """Whether there is a curve to draw."""
    return len({key.split()[2] for key in found}) > 1


def rates_table(found: dict) -> str:
    peaks = {key: value["rate"] for key, value in found.items() if "rate" in value}
    text = "Best rates measured: " + ", ".join(
        f"{key} {rate:.3g} {'GB/s' if key == 'copy' else 'GFLOP/s'}" for key, rate in peaks.items()
    )
    best = max(rate for key, rate in peaks.items() if key != "copy")
    rows = []
    for name, runs in found.items():
        if name in peaks:
            continue
        for what, share in (("train", 1), ("evaluate", 1 / 3)):
            speed = {who: [r[what] for r in runs[who]] for who in runs if who != "work"}
            plain, ours = speed.get("plain"), speed["vaelib"]
            mflop, mb = runs["work"]["mflop"] * share, runs["work"]["mb"] * share
            floor = 1 / max(mflop / best / 1e3, mb / peaks["copy"] / 1e3)
            rows.append(
                [name, what, spread(plain, ",.0f") if plain else "", spread(ours, ",.0f"),
                 f"{mean(ours) / mean(plain):.2f}" if plain else "", f"{mflop:.1f}", f"{mb:.2f}",
                 f"{floor:,.0f}", f"{mean(ours) * mflop / 1e3 / best:.0%}",
                 load_of([r for who in speed for r in runs[who]])]
            )  # fmt: skip
    head = ["model", "loop", "plain, images/s", "vaelib, images/s", "ratio", "MFLOP an image",
            "MB an image", "at most, images/s", "of the best GFLOP/s", "foreign load"]  # fmt: skip
    return f"{text}.\n\n{table(head, rows)}"


def latency_table(found: dict) -> str:
    keys = [key for key in next(iter(found.values())) if key != "foreign"]
    names = {
        "import_s": "`import vaelib`, s", "load_to_picture_s": "load to the first picture, s",
        "decode_ms": "decode one, ms", "encode_ms": "encode one, ms",
        "64_samples_figure_s": "figure of 64 samples, s",
        "elbo_10000_s": "ELBO of 10,000 digits, s",
        "bound_fp32_s_per_million": "bound, s per million decodings, fp32",
        "bound_fast_s_per_million": "the same, compiled, bf16 where there is",
    }  # fmt: skip
    rows = [[names[key], *[f"{run[key]:.3g}" for run in found.values()]] for key in keys]
    return table(["", *found], rows)


def scaling_table(found: dict) -> str:
    rows = [
        [name, f"{run['images_per_s']:,.0f}", f"{run['before_mb']:,.0f}",
         f"{run['memory_mb'] - run['before_mb']:,.0f}", f"{run['mapped_mb']:,.0f}", load_of([run])]
        for name, run in found.items()
    ]  # fmt: skip
    head = ["", "images/s", "MB before", "MB more in training", "of them mapped", "foreign load"]
    return table(head, rows)


def sprites_table(found: dict) -> str:
    rows = [
        [f"`{name}`", spread(run["images_per_s"], ",.0f"), f"{run['first_s']:.2f}", load_of([run])]
        for name, run in found.items()
    ]
    return table(["", "images/s, 20,000 five times", "before the first, s", "foreign load"], rows)


def plot(found: dict) -> Figure:
    """Test -ELBO against wall clock, one dot a seed."""
    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    kind = next(iter(found)).split()[0]
    for who, colour in zip(WHO, seaborn.color_palette("colorblind"), strict=False):
        points = [
            (int(key.split()[2]), run["nats"])
            for key, runs in found.items() if key.startswith(f"{kind} {who} ") for run in runs
        ]  # fmt: skip
        if not points:
            continue
        seconds = sorted({s for s, _ in points})
        axes.plot(*zip(*points, strict=True), "o", ms=4, color=colour)
        means = [mean(n for s, n in points if s == t) for t in seconds]
        axes.plot(seconds, means, color=colour, label=WHO[who].strip("`"))
        axes.set_xscale("log")
        axes.set_xticks(seconds, [str(s) for s in seconds])
    axes.set(xlabel="seconds of wall clock", ylabel="test -ELBO (nats)")
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


PARTS = {
    "nats": ("Nats per minute", nats_table),
    "rates": ("Throughput", rates_table),
    "latency": ("Latency", latency_table),
    "scaling": ("Scaling", scaling_table),
    "sprites": ("Sprites drawn in memory, 64x64", sprites_table),
}


def write(results: dict) -> None:
    """Put what there is of results into README.md: of each section the kinds of processor."""
    parts = []
    for key, (title, make) in PARTS.items():
        for kind, part in results.get(key, {}).items():
            made = part["made_with"]
            on = (
                f"{made['date']}, {made['processor']}, {made['threads']} cores, PyTorch "
                f"{made['torch']}, Python {made['python']}. {made.get('note', '')}"
            ).strip()
            parts += [f"### {title}: {MACHINES[kind]}", on, make(part["found"])]
    for kind, part in results.get("nats", {}).items():
        if not several_times(part["found"]):
            continue
        figure, to = plot(part["found"]), HERE / f"nats-{kind}.png"
        figure.savefig(to, dpi=130, metadata={"Software": None})
    page = (HERE / "README.md").read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    text = before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + rest.split(END)[1]
    (HERE / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(json.loads((HERE / "results.json").read_text()))
