"""Trainings on `needle` beside their baselines and controls: `mgpo demo`, `mgpo sweep`, `mgpo reproduce`."""
