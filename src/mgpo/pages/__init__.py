"""Reports, curves and the viewer: what a run or an evaluation looks like."""
