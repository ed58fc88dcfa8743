"""Critics against human judgements: `python -m flows.calibrate FILE`."""
