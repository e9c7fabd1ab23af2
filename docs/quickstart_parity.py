"""Draw ``docs/images/quickstart-parity.png``: the quickstart with and without long range.

From the repository's root:

    mtt train options/quickstart.yaml -o long-range.pt
    mtt train options/short-range.yaml -o short-range.pt
    python docs/quickstart_parity.py short-range.pt long-range.pt
"""

import sys
from pathlib import Path

from metatrain_lorem.parity import plot_parity
from metatrain_lorem.report import evaluate
from metatrain_lorem.report_table import errors, format_table

ROOT = Path(__file__).resolve().parents[1]
TEST_SET = ROOT / "options" / "data" / "nacl-clusters-test.xyz"

if __name__ == "__main__":
    short_range, long_range = sys.argv[1:]
    evaluations = {
        "short range only": evaluate(short_range, TEST_SET),
        "LOREM": evaluate(long_range, TEST_SET),
    }
    for label, evaluation in evaluations.items():
        print(f"{label}\n{format_table(errors(evaluation))}\n")
    plot_parity(evaluations, ROOT / "docs" / "images" / "quickstart-parity.png")
