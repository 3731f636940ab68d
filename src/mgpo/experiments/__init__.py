"""Experiments on `needle`, with baselines and controls: `mgpo demo`, `mgpo sweep`, `mgpo reproduce`."""
