"""Builds the site from docs/ into a folder, and fails at the first link, anchor or docstring that does not hold.

python docs/build_site.py [FOLDER]    # build/site by default; needs the extra `docs`

Pages link to each other and to files of the repository by relative paths, which GitHub follows. In the site, a file that a
page links to outside docs/ becomes a page of its own, so links hold wherever the repository is kept. README.md is the start page.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Files outside docs/ that are pages of the site in any case."""
LINK = re.compile(r"(?<!\\)\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".toml": "toml"}


def main(folder: Path) -> None:
    write_pages(folder / "pages")
    build(folder)
    print(
        f"{folder / 'html/index.html'} is the site; to search it: python -m http.server --directory {folder / 'html'}"
    )


def build(folder: Path) -> None:
    """Run Zensical in its strict mode on what lies in `folder`/pages, into `folder`/html."""
    shutil.copy(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(folder / "mkdocs.yml"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    if done.returncode:
        sys.exit(said)
    if docstrings := [line for line in said.splitlines() if line.startswith("griffe:")]:
        sys.exit("\n".join(["These docstrings cannot be read:", *docstrings]))  # --strict does not count them


def write_pages(pages: Path) -> None:
    """Copy docs/ without its scripts, and the files that it links to."""
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    shutil.copy(ROOT / "docs/site.css", pages)
    waiting, written = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ALWAYS)], set()
    while waiting:
        file = waiting.pop()
        if file in written:
            continue
        written.add(file)
        if file.suffix == ".png":
            shutil.copy(file, pages / page_of(file))
            continue
        if file.suffix == ".md":
            text, linked = with_site_links(file, file.read_text())
            waiting += linked
        else:
            text = f"# {file.relative_to(ROOT)}\n\n````{LANGUAGES.get(file.suffix, '')}\n{file.read_text()}\n````\n"
        (pages / page_of(file)).write_text(text)


def with_site_links(file: Path, text: str) -> tuple[str, list[Path]]:
    """The text of a page with its links as the site has them, and the files that it links to."""
    linked = []

    def in_site(match: re.Match) -> str:
        target = (file.parent / match[1]).resolve()
        if target == ROOT / "README.md":
            target = ROOT / "docs/index.md"
        if not target.is_file() or not target.is_relative_to(ROOT):
            sys.exit(f"{file.relative_to(ROOT)} links to {match[1]}, which is no file of the repository.")
        linked.append(target)
        return f"]({page_of(target)}{match[2] or ''})"

    return LINK.sub(in_site, text), linked


def page_of(file: Path) -> str:
    """The name of a file of the repository in the site, which has one folder."""
    inside = file.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return inside.name
    return "source_" + "_".join(inside.parts) + ("" if file.suffix in (".md", ".png") else ".md")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/site").resolve())
