"""The method itself, without torch: questions, the turn protocol, boxes, and the reward."""
