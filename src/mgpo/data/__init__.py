"""Reading of datasets: rows of known layouts become questions."""
