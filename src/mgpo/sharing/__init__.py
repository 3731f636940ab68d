"""Puts a trained model on the Hugging Face hub, with its card, settings and results."""
