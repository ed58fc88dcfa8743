"""Which model: its place and its digest."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Pointer:
    """A model: its folder relative to the repository (or a hub name), and the digest of its content."""

    path: str
    digest: str

    def text(self) -> str:
        """The content of a file that names a model."""
        return json.dumps({"path": self.path, "digest": self.digest}, sort_keys=True, indent=2) + "\n"
