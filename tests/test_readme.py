"""What README.md says in figures stands in the files under results/."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def measured(seed, name):
    return json.loads((ROOT / "results" / "quickstart" / f"seed_{seed}" / f"{name}.json").read_text())


def rows():
    """{first cell: other cells} of the table of success rates, and the seeds in its head."""
    lines = [line for line in README.splitlines() if line.startswith("|")]
    head = next(i for i, line in enumerate(lines) if line.startswith("| success in 20 unseen scenes"))
    seeds = re.findall(r"training seed (\d+)", lines[head])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 :]]
    return {row[0]: row[1:] for row in cells if len(row) == 1 + len(seeds)}, seeds


def test_the_success_rates_are_those_of_the_result_files():
    table, seeds = rows()
    assert len(seeds) == 2
    for column, seed in enumerate(seeds):
        found = measured(seed, "rollout")
        for task, counts in found["tasks"].items():
            assert table[task][column] == f"{counts['successes']}/{counts['episodes']}"
        total = found["success"]
        assert table["all six"][column].startswith(f"**{total['rate']:.0%}** ({total['successes']}/{total['episodes']}")
        for name, row in (("swapped", "faucets, each told the other's instruction"), ("random", "random weights")):
            control = measured(seed, name)["success"]
            assert table[row][column] == f"{control['successes']}/{control['episodes']}"


def test_what_was_tried_before_is_counted_from_its_files():
    development = ROOT / "results" / "quickstart" / "development"
    found = {path.stem: json.loads(path.read_text())["success"] for path in development.glob("*.json")}
    text = " ".join(README.split())
    totals = [sum(found[f"steps_{steps}{part}"]["successes"] for part in "ab") for steps in (1, 2, 4, 10)]
    assert "{}, {}, {} and {} of 240 episodes".format(*totals) in text
    packed = [found[f"earlier_packing_seed_{seed}"] for seed in (6198, 1)]
    assert "{} and {} of 120".format(*(one["successes"] for one in packed)) in text
    rates = [one["rate"] for one in (*packed, measured(6198, "rollout")["success"], measured(1, "rollout")["success"])]
    assert f"span {min(rates):.0%} to {max(rates):.0%}" in text
    assert f"({found['earlier_3000_steps']['rate']:.0%} and {found['earlier_6000_steps']['rate']:.0%}," in text


def test_the_time_is_that_of_the_first_pass_over_all_parts():
    lines = (ROOT / "results" / "quickstart" / "seed_6198" / "timings.jsonl").read_text().splitlines()
    first: dict[str, float] = {}
    for line in map(json.loads, lines):
        first.setdefault(line["part"], line["seconds"])
    assert f"{sum(first.values()) / 60:.0f} minutes with a test suite running beside it" in " ".join(README.split())


def test_pictures_and_files_that_it_links_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
