"""The turn protocol as an environment of other people's trainers."""
