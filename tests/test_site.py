"""Links between pages and to files hold on GitHub and in the site, and the site is built strictly (extra `docs`)."""

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs/build_site.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!\\)\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")


def without_code(page):
    return re.sub(r"^(```+).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """As GitHub makes them of headings: lower case, spaces as hyphens, other punctuation left out."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_hold_on_github(page):
    for target, anchor in LINK.findall(without_code(page)):
        file = page if not target else page.parent / target
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no heading #{anchor}"


def test_every_page_is_in_the_navigation_and_named_by_the_readme_or_the_start_page():
    def pages(nav):
        for entry in nav:
            (value,) = entry.values()
            yield from pages(value) if isinstance(value, list) else [value]

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    own = [name for name in named if not name.startswith("source_")]
    assert sorted(own) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_a_page_may_link_to_any_file_of_the_repository(tmp_path):
    SCRIPT["write_pages"](tmp_path)
    page = (tmp_path / "environments.md").read_text()
    assert "](source_examples_trl_environment.py.md)" in page
    shown = (tmp_path / "source_examples_trl_environment.py.md").read_text()
    assert (ROOT / "examples/trl_environment.py").read_text() in shown
    for page in tmp_path.glob("*.md"):
        for target, _ in LINK.findall(without_code(page)):
            assert not target or (tmp_path / target).is_file(), f"{page.name} links to {target}"


def test_a_link_to_nothing_is_refused():
    with pytest.raises(SystemExit, match="docs/index.md links to ../src/gone.py, which is no file"):
        SCRIPT["with_site_links"](ROOT / "docs/index.md", "[gone](../src/gone.py)")


def test_the_figure_is_what_the_shipped_model_does(tmp_path):
    """It is drawn from a real episode, whose box is valid and whose answer is right: docs/draw_episode.py."""
    drawn = runpy.run_path(str(ROOT / "docs/draw_episode.py"))["main"]("mgpo-tiny-mgpo", tmp_path / "episode.png")
    assert drawn == 1 and (tmp_path / "episode.png").stat().st_size > 20_000


class Page(HTMLParser):
    """Counts tables and pictures, and collects the text of paragraphs and where the page asks for something."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.asked, self.paragraphs, self._inside = 0, [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tables += tag == "table"
        self._inside = tag == "p" or (self._inside and tag not in ("pre", "table"))
        if tag == "p":
            self.paragraphs.append("")
        if tag in ("script", "link", "img", "iframe"):
            found = dict(attributes)
            self.asked += [found.get("src") or (found.get("href") if tag == "link" else None) or ""]

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "p"

    def handle_data(self, data):
        if self._inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason='the site needs the extra docs: make docs, or pip install -e ".[docs]"')
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs/build_site.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_is_built_strictly_and_asks_no_other_server(site):
    for page in (ROOT / "docs").glob("*.md"):
        built = Page((site / "html" / f"{page.stem}.html").read_text())
        assert not [url for url in built.asked if re.match("(https?:)?//", url)], page.name
        assert (site / "html/search.json").is_file()


def test_tables_and_lists_are_read_as_on_github(site):
    """Python's Markdown needs an empty line before a list, which GitHub does not; a list would become a paragraph."""
    for page in (ROOT / "docs").glob("*.md"):
        text, built = without_code(page), Page((site / "html" / f"{page.stem}.html").read_text())
        assert built.tables >= len(re.findall(r"^\|[ :|-]+\|$", text, re.MULTILINE)), page.name
        assert not [p for p in built.paragraphs if re.search(r"^\s*(\||[-*] |\d+\. )", p, re.MULTILINE)], page.name


@pytest.mark.parametrize(
    "broken, said",
    [
        ("[x](gone.md)", "page does not exist"),
        ("[x](data.md#gone)", "anchor does not exist"),
        ("::: mgpo.Gone", "Gone"),
    ],
)
def test_what_does_not_hold_fails_the_build(site, tmp_path, broken, said):
    (tmp_path / "pages").mkdir()
    for page in ("index.md", "data.md"):
        (tmp_path / "pages" / page).write_text("# Page\n\n" + broken)
    with pytest.raises(SystemExit, match=said):
        SCRIPT["build"](tmp_path)
