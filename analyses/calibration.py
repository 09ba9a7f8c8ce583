"""What our numbers mean: every metric on the organisms of five worlds, as a table and a figure.

python analyses/calibration.py --seeds 5        # figures/calibration.{png,svg,csv,json} and calibration_manifest.json
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from elm_interp.calibration import anchors, calibrate, summary
from elm_interp.plots import plot_calibration, save

FIGURES = Path(__file__).parent.parent / "figures"


def main() -> None:
    """Measure, and write table, figure and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="worlds")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder to write to")
    given = parser.parse_args()
    began = time.perf_counter()
    table = calibrate(range(given.seeds), progress=True)
    rows = anchors(table)
    save(plot_calibration(rows), given.out / "calibration")
    rows.to_csv(given.out / "calibration.csv", index=False, float_format="%.6g")
    (given.out / "calibration.json").write_text(json.dumps(summary(table), indent=1))
    manifest = {
        "command": " ".join(["python", "analyses/calibration.py", *sys.argv[1:]]),
        "git": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=FIGURES.parent, capture_output=True, text=True
        ).stdout.strip(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {name: version(name) for name in ("elm-interp", "torch", "transformers", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "dtype": "float32",
    }
    (given.out / "calibration_manifest.json").write_text(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
