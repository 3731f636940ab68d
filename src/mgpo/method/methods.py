"""By which methods a model can be trained."""

from mgpo.method.protocol import Method

SFT = "sft"
METHODS = (Method.MGPO, Method.GRPO, Method.DIRECT, SFT)


def refuse_unknown_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        ValueError: the message lists those that do.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown. Choose one of: {', '.join(METHODS)}.")
