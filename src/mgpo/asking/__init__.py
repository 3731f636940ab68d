"""One question of one photograph, and the settings by which a model is asked."""
