"""How pages are made from their templates: every text is escaped, and a name that is not given is an error."""

from __future__ import annotations

from typing import Any

from mgpo.pages.tables import percent, spread


def environment() -> Any:
    """A jinja2 environment with the package's templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("mgpo", "pages/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    made.filters["spread"] = spread
    return made
