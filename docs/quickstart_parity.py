"""Draw ``docs/images/quickstart-parity.png``: the quickstart and its two smaller siblings.

From the repository's root:

    mtt train options/short-range.yaml -o short-range.pt
    mtt train options/long-range.yaml -o long-range.pt
    mtt train options/quickstart.yaml -o quickstart.pt
    python docs/quickstart_parity.py short-range.pt long-range.pt quickstart.pt
"""

import sys
from pathlib import Path

from metatrain_lorem.commands.report.evaluation import evaluate
from metatrain_lorem.commands.report.parity_plot import plot_parity
from metatrain_lorem.commands.report.table import errors, format_table

ROOT = Path(__file__).resolve().parents[1]
TEST_SET = ROOT / "options" / "data" / "nacl-clusters-test.xyz"

if __name__ == "__main__":
    labels = ("short range only", "long range", "long range + charges")
    evaluations = {
        label: evaluate(model, TEST_SET) for label, model in zip(labels, sys.argv[1:], strict=True)
    }
    for label, evaluation in evaluations.items():
        print(f"{label}\n{format_table(errors(evaluation))}\n")
    plot_parity(evaluations, ROOT / "docs" / "images" / "quickstart-parity.png")
