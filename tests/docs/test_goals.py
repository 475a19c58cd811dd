"""The table of goals in the README is that of the page on speed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows(name, heading):
    """The rows of the table below a heading."""
    lines = (ROOT / name).read_text().split(f"\n## {heading}\n")[1].splitlines()
    end = next(
        (i for i, line in enumerate(lines) if line.startswith("## ")), -1
    )
    return [line for line in lines[:end] if line.startswith("|")]


def test_the_readme_has_every_goal_beside_its_figure():
    goals = rows("docs/speed.md", "Goals")
    assert len(goals) > 10
    assert rows("README.md", "How fast it is") == goals
