"""mgpo: multi-turn grounding-based policy optimization for vision-language models."""

__version__ = "0.1.0"
