"""Metrics of an episode. Training, evaluation and reports use the same names."""

from __future__ import annotations

from mgpo.method.boxes import BoxStatus, holds_centre, iou
from mgpo.method.episode import Episode
from mgpo.method.question import Box


def hit_and_iou(box_px_original: Box | None, gold_boxes: tuple[Box, ...]) -> tuple[float, float]:
    """Whether a box contains the centre of a gold box (1 or 0), and its best IoU; both are 0 without a valid box."""
    if box_px_original is None:
        return 0.0, 0.0
    hits = [holds_centre(box_px_original, gold) for gold in gold_boxes]
    return float(any(hits)), max(iou(box_px_original, gold) for gold in gold_boxes)


def episode_metrics(episode: Episode) -> dict[str, float]:
    """Metrics of one finished episode.

    - `grounding/valid_share`, and one `grounding/rejected_*` per reason.
    - `grounding/hit_rate` and `grounding/iou` where gold boxes exist, and `grounding/hit_given_valid` for valid boxes only. A turn
      without a valid box counts as a miss, and so does a box in another image than the gold box.
    - `grounding/crop_area` (share of the original's pixels) for valid boxes.
    - `grounding/image_N` of a question about several images: whether turn 1 looks at image N.
    - `turns/N_truncated` per turn.
    """
    metrics: dict[str, float] = {}
    grounding = episode.first_grounding
    if grounding is not None:
        valid, box = grounding.status is BoxStatus.VALID, grounding.box_px_original
        metrics["grounding/valid_share"] = float(valid)
        for status in BoxStatus:
            if status is not BoxStatus.VALID:
                metrics[f"grounding/rejected_{status}"] = float(grounding.status is status)
        if len(episode.originals) > 1:
            for number in range(1, len(episode.originals) + 1):
                metrics[f"grounding/image_{number}"] = float(valid and grounding.image_number == number)
        if valid and box is not None:
            x1, y1, x2, y2 = box
            original = episode.original_of(grounding)
            metrics["grounding/crop_area"] = (x2 - x1) * (y2 - y1) / (original.width * original.height)
        if episode.question.gold_boxes_px_original:
            there = grounding.image_number == episode.question.gold_image
            hit, overlap = hit_and_iou(box if there else None, episode.question.gold_boxes_px_original)
            metrics["grounding/hit_rate"], metrics["grounding/iou"] = hit, overlap
            if valid:
                metrics["grounding/hit_given_valid"] = hit
    for number, turn in enumerate(episode.model_turns, 1):
        metrics[f"turns/{number}_truncated"] = float(turn.truncated)
    return metrics
