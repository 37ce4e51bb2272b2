"""Print how many cells the table of the contract has, and why some are no tests: ``python -m tests.contract``."""

from __future__ import annotations

import sys
from collections import Counter

from tests.contract import test_table  # noqa: F401, fills the table
from tests.contract.case import TABLE, TESTED
from tests.contract.cases import CASES, RECORDS


def main() -> None:
    """Print the counts by property, then all reasons."""
    names = {name.partition(",")[0] for name in CASES}
    cells = Counter(cell == TESTED for row in TABLE.values() for cell in row.values())
    lines = [
        f"{len(names)} public names in {len(CASES)} cases, {len(RECORDS)} records that compute nothing",
        f"{len(TABLE)} properties: {cells[True]} cells tested, {cells[False]} explained",
        "",
    ]
    for title, row in sorted(TABLE.items()):
        reasons = Counter(cell for cell in row.values() if cell != TESTED)
        lines.append(f"{sum(cell == TESTED for cell in row.values()):4d}  {title}")
        lines += [f"      {number:4d} {reason}" for reason, number in reasons.most_common()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
