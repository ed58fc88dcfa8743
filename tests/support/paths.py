"""Where the repository is, and the real prompts beside it that some tests read where they are there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared/data"
