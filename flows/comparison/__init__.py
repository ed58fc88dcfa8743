"""Two models, or two evolutions iteration by iteration, on the same held-out prompts: `python -m flows.compare`."""
