"""Images: opened within limits, resized by one rule, cropped in full detail."""
