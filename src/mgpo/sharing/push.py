"""`mgpo push RUN HUB_ID`: shows what would be uploaded, and uploads it.

    mgpo push runs/mine me/my-model --dry-run

Everything goes up in one commit, so nobody sees half a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console
from rich.table import Table

from mgpo.errors import RunError
from mgpo.runs.checkpoints import WEIGHTS
from mgpo.runs.folder import only_one
from mgpo.sharing.contents import Contents, Picture, as_jpeg, contents_of, picture_of_file

SEED = 1
"""Seed of the `needle` question whose episode is drawn."""


def prepare(run: Path, hub_id: str, results: Sequence[Path] = (), picture: Path | None = None) -> Contents:
    """What would be uploaded.

    Args:
        run, hub_id, results: see `mgpo.sharing.contents.contents_of`.
        picture: a picture of an episode, as `mgpo ask --save` writes. Without one, an episode is drawn if the run was
            trained on `needle`; photographs are never shared unasked.

    Raises:
        ValueError: the run cannot be shared as it is; the message says why.
    """
    refuse_name(hub_id)
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder. Name the folder of a finished run.")
    with (
        only_one(run) if (run / ".lock").is_file() else nullcontext()
    ):  # a run that trains would change under the upload
        contents = contents_of(run, hub_id, results)  # refuses before the model is loaded for its picture
        shown = picture_of_file(picture) if picture is not None else _drawn(run)
        if shown is not None:
            return contents_of(run, hub_id, results, shown)
    note = "The card has no picture of an episode. --picture FILE adds one that mgpo ask --save made and that you may publish."
    return Contents(contents.items, contents.left_here, (*contents.notes, note))


def refuse_name(hub_id: str) -> None:
    """Refuse a name that is none of the hub."""
    if hub_id.count("/") != 1:
        raise ValueError(f"{hub_id!r} is no name on the hub. Write owner/name, e.g. your-name/my-model.")
    validate_repo_id(hub_id)


def refuse_offline() -> None:
    """Refuse to upload where the hub cannot be asked.

    Raises:
        RunError: the hub is switched off (HF_HUB_OFFLINE), or there is no token.
    """
    if constants.is_offline_mode():
        raise RunError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, or use --dry-run to see what would be."
        )
    if get_token() is None:
        raise RunError(
            "You are not logged in to the hub. Run hf auth login, or set HF_TOKEN to a token that may write "
            "(https://huggingface.co/settings/tokens). --dry-run needs neither."
        )


def show(contents: Contents, hub_id: str, private: bool, console: Console) -> None:
    """Print the files and their sizes, what stays here, and the notes."""
    view = Table("file", "size", title=f"{hub_id} ({'private' if private else 'public'})", title_justify="left")
    view.columns[1].justify = "right"
    for item in contents.items:
        view.add_row(item.path, readable(item.size))
    view.add_section()
    view.add_row(f"{len(contents.items)} files", readable(sum(item.size for item in contents.items)))
    console.print(view)
    if contents.left_here:
        console.print(f"stays here: {', '.join(contents.left_here)}", markup=False, soft_wrap=True)
    for note in contents.notes:
        console.print(note, markup=False, soft_wrap=True)


def upload(contents: Contents, hub_id: str, private: bool) -> str:
    """Upload in one commit; returns the model's address.

    Raises:
        RunError: the hub refused or could not be reached, the repository is public although `private` was asked for, or
            it already holds other weights.
    """
    api = HfApi()
    with TemporaryDirectory() as place, _explained(hub_id):
        url = api.create_repo(hub_id, private=private, exist_ok=True)
        _refuse_repository(api.model_info(hub_id), contents, hub_id, private)
        for item in contents.items:
            file = Path(place) / item.path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(item.source, bytes):
                file.write_bytes(item.source)
            else:
                os.symlink(item.source.resolve(), file)  # weights are not copied
        api.upload_folder(repo_id=hub_id, folder_path=place, commit_message="Upload by mgpo push")
    return str(url)


def readable(size: int) -> str:
    """A number of bytes as kB, MB or GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _refuse_repository(there: Any, contents: Contents, hub_id: str, private: bool) -> None:
    if private and not there.private:
        raise RunError(
            f"{hub_id} exists and is public. Make it private in its settings on the hub, or choose another name."
        )
    ours = {item.path for item in contents.items}
    files = [entry.rfilename for entry in there.siblings or ()]
    other = [name for name in files if name not in ours and any(fnmatch(name, weights) for weights in WEIGHTS)]
    if other:
        raise RunError(
            f"{hub_id} holds other weights ({', '.join(other[:3])}), which would be loaded beside or instead of these. Choose another "
            "name, or delete them on the hub first."
        )


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise RunError(
                f"The hub refused {hub_id} ({status}): your token may not write there. Use a token with write access, and a name of yours "
                f"or of your organisation. The hub said: {error.server_message or 'nothing more'}"
            ) from error
        raise RunError(f"The hub refused {hub_id}: {error}") from error
    except HTTPError as error:  # of httpx, or of httpx2 since huggingface_hub 2
        raise RunError(f"The hub at {constants.ENDPOINT} could not be reached ({error}). Try again later.") from error


def _drawn(run: Path) -> Picture | None:
    """An episode about a scene of `needle`: the first fine-print question of the test split, right or wrong."""
    from mgpo.policies.names import trained_with

    if trained_with(str(run)).get("dataset_name") != "needle":
        return None
    from mgpo.asking.grounded import GroundedVQA
    from mgpo.asking.picture import draw_episode
    from mgpo.worlds.needle import needle_rows

    row = next(row for row in needle_rows("test", SEED, 100) if row["gold_boxes"])
    vqa = GroundedVQA.from_pretrained(str(run), protocol=None)
    found = vqa.ask(row["image"], row["question"], row["choices"])
    verdict = "right" if found.letter == row["answer"] else f"wrong: it is {row['answer']}"
    caption = (
        f"The first question about fine print of `needle`'s test split with seed {SEED}, which was not trained on. "
        f"The answer is {verdict}."
    )
    return Picture(as_jpeg(draw_episode(found.episode)), caption)
