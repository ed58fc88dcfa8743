"""Where the time of a whole `dvc repro` goes: work and orchestration.

    python -m tests.benchmarks.overhead --workdir DIR [--size mini]

Makes a fresh working copy of the default recipe below DIR, runs `dvc repro` there, then `dvc repro` again. Work is what
the stages' own functions took, by the records in `.autodidact/records`; orchestration is the rest of the wall time:
Prefect, DVC, MLflow, process starts and most imports. Peak memory is that of the largest process.
"""

import argparse
import json
import resource
import subprocess
import time
from pathlib import Path

from tests.support.workspace import run, workspace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--size", default=None, help="a size on top of the default recipe, such as mini")
    options = parser.parse_args()
    folder = options.workdir / "here"
    workspace(folder, options.workdir / "cache", "self_evolution", options.size)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    began = time.perf_counter()
    run(folder, "dvc", "repro")
    wall = time.perf_counter() - began
    began = time.perf_counter()
    again = run(folder, "dvc", "repro")
    idle = time.perf_counter() - began
    records = [json.loads(path.read_text()) for path in (folder / ".autodidact/records").glob("*.json")]
    work = sum(record["work_seconds"] for record in records)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"revision {revision.stdout.strip()}, {len(records)} stages, {options.size or 'full'} size")
    for name, seconds in {"work": work, "orchestration": wall - work}.items():
        print(f"{name:14} {seconds:7.1f} s  {seconds / wall:6.1%}")
    print(f"{'wall':14} {wall:7.1f} s")
    print(f"again          {idle:7.1f} s  ({'nothing ran' if 'Running stage' not in again else 'stages ran'})")
    print(f"peak memory    {peak:7.2f} GiB (largest process)")


if __name__ == "__main__":
    main()
