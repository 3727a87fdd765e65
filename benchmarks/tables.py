"""Makes the tables of the docs from what benchmarks found, `benchmarks/results/*.json`.

    python benchmarks/tables.py            # prints them
    python benchmarks/tables.py --write    # and puts them into the pages

A page says between two marks which result its table is made from.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, read_result

DOCS = Path(__file__).parent.parent / "docs"
MARKED = re.compile(r"(<!-- from benchmarks/results/(\w+)\.json -->\n).*?(<!-- end -->)", re.S)


def score_table(figures: dict[str, Any]) -> str:
    """Returns the rates of scoring end to end, of the bare model and of decoding."""
    columns = (
        "| | pairs/s | pairs/s of a core | share of it end to end: by the clock | by core seconds |"
    )
    shares = {
        "bare forward, same tokens": ("same tokens", "by core time"),
        "bare forward, whole context": ("whole context",),
    }
    lines = [columns, "|---|--:|--:|---|---|"]
    for name, rate in figures["pairs_per_second"].items():
        found = [figures["shares"][share] for share in shares.get(name, ())]
        cells = [f"{one['median']:.3f} ({one['least']:.3f} to {one['most']:.3f})" for one in found]
        of_a_core = figures["pairs_per_core_second"][name]
        more = " | ".join([*cells, "", ""][:2])
        lines.append(f"| {name} | {rate:.1f} | {of_a_core:.1f} | {more} |")
    return "\n".join(lines)


def score_memory_table(figures: dict[str, Any]) -> str:
    """Returns what each model gains over open_clip as it comes."""
    lines = [
        "| model | side | pictures/s of a core | pairs/s of a core | user, s | system, s "
        "| page faults | peak memory, MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model, sides in figures["models"].items():
        for side in ("as it comes", "kept"):
            one = sides[side]
            lines.append(
                f"| {model} | {side} | {one['rate']:.1f} | {one['pair_rate']:.1f} | "
                f"{one['user']:.1f} | {one['system']:.1f} | {one['faults']:,.0f} | "
                f"{one['peak_mib']:,.0f} |"
            )
        lines.append(
            f"| {model} | **times** | **{sides['kept_to_as_it_comes']:.2f}** | "
            f"**{sides['of_pairs']:.2f}** | | | | |"
        )
    return "\n".join(lines)


def score_feed_table(figures: dict[str, Any]) -> str:
    """Returns what getting pictures ready takes, by their shape and by threads."""
    lines = [
        "| stored pictures | decode, ms | resize and crop, ms | all, ms | pictures/s of a core |",
        "|---|--:|--:|--:|--:|",
    ]
    for shape, one in figures["shapes"].items():
        lines.append(
            f"| {shape} | {one['decode']:.2f} | {one['resize']:.2f} | {one['all']:.2f} | "
            f"**{1000 / one['all']:.0f}** |"
        )
    lines += [
        "",
        "| threads | pictures/s by the clock | of a core by processor time |",
        "|---|--:|--:|",
    ]
    lines += [
        f"| {threads} | {one['rate']:.0f} | {one['core_rate']:.0f} |"
        for threads, one in figures["threads"].items()
    ]
    return "\n".join(lines)


def web_table(figures: dict[str, Any]) -> str:
    """Returns what several shards at once bring where hosts hang."""
    rows = [
        ("one shard at a time", "one_shard_at_a_time_per_second"),
        ("as it comes", "as_it_comes_per_second"),
        ("what 1,024 connections allow", "connections_allow_per_second"),
    ]
    lines = ["| web | images/s | share of what connections allow |", "|---|--:|--:|"]
    allowed = figures["connections_allow_per_second"]
    lines += [
        f"| {name} | {figures[key]:.0f} | {figures[key] / allowed:.2f} |" for name, key in rows
    ]
    return "\n".join(lines)


def beside_table(figures: dict[str, Any]) -> str:
    """Returns our figures beside img2dataset's."""
    lines = [
        "| side | images/s by the clock | in its own count | peak memory, MiB | "
        "ms of a core, each | kept |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for side in ("ours", "img2dataset"):
        one = figures[side]
        own = figures["images"] / one["working_seconds"]
        lines.append(
            f"| {side} | {one['images_per_second']:.0f} | {own:.0f} | {one['peak_mib']:.0f} | "
            f"{one['core_ms_per_image']:.2f} | {one['kept']:,} |"
        )
    lines.append(
        f"| **times** | **{figures['times_faster_by_the_clock']:.2f}** | "
        f"**{figures['times_faster_in_their_own_count']:.2f}** | "
        f"**{figures['memory_ratio']:.2f}** | | |"
    )
    least = figures.get("least_core_ms", {})
    for key, name in BOUNDS.items():
        if key in figures:
            each = f" {sum(least.values()):.2f}" if key == "cores_allow_per_second" else ""
            lines.append(f"| {name.format(**least)} | | {figures[key]:.0f} | |{each} | |")
    lines.append(
        f"| ours, share of the lowest bound | | {figures['share_of_the_bound']:.2f} | | | |"
    )
    return "\n".join(lines)


BOUNDS = {
    "decoding_alone_per_second": "bound: all cores prepare these images, nothing else to do",
    "cores_allow_per_second": (
        "bound: all cores prepare ({preparing:.2f} ms each), serve ({serving:.2f}) and only ask "
        "({asking:.2f})"
    ),
    "connections_allow_per_second": "bound: what 1,024 connections and the slowest host allow",
}
"""What a side could reach at most; the lowest counts."""


def start_table(figures: dict[str, Any]) -> str:
    """Returns what starting takes, by workers."""
    lines = [
        "| workers | to the first request, s | all of the job, s | of all cores, s |",
        "|--:|--:|--:|--:|",
    ]
    for workers in (1, 2):
        one = figures[f"workers_{workers}"]
        lines.append(
            f"| {workers} | {one['first_request_seconds']:.1f} | {one['seconds']:.1f} | "
            f"{one['core_seconds']:.1f} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "score": score_table,
    "score_memory": score_memory_table,
    "score_feed": score_feed_table,
    "fetch_web": web_table,
    "fetch_start": start_table,
    **dict.fromkeys(("fetch_cpu", "fetch_latency", "fetch_mixed"), beside_table),
}
"""Name of a result to what makes its table; others hold theirs as it was printed."""

LIBRARIES = {"fetch": ("aiohttp",), "score": ("torch", "open_clip_torch")}
"""Whose versions show in a table, by the first word of a result's name."""


def table(name: str) -> str:
    """Returns a table with what its figures were made on, from the stored result."""
    values = read_result(name)
    machine, figures = values["machine"], values["figures"]
    sizes = [
        f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in figures.items()
        if isinstance(value, int | str) or (isinstance(value, float) and name not in TABLES)
    ]
    libraries = LIBRARIES.get(name.partition("_")[0], ())
    parts = [
        ", ".join([machine["processor"], f"{machine['cores']} cores", _load(machine)]),
        ", ".join(sizes),
        ", ".join(f"{library} {values['versions'][library]}" for library in libraries),
    ]
    made = TABLES[name](figures) if name in TABLES else Table(**figures["table"])
    return f"{made}\n\n{'; '.join(part for part in parts if part)}."


def _load(machine: dict[str, Any]) -> str:
    load = machine["load_of_the_last_minute"]
    return "load not noted" if load is None else f"load {load}"


def with_tables(page: str) -> str:
    """Returns a page with its marked tables made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", page)


def pages() -> list[Path]:
    """Returns the pages that have tables of results."""
    return [path for path in sorted(DOCS.glob("*.md")) if MARKED.search(path.read_text("utf-8"))]


def main() -> None:
    """Prints the tables, and writes them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    options = parser.parse_args()
    for path in pages():
        text = path.read_text("utf-8")
        for _, name, _ in MARKED.findall(text):
            print(f"{path.name}, {name}:\n\n{table(name)}\n")
        if options.write:
            path.write_text(with_tables(text), "utf-8")


if __name__ == "__main__":
    main()
