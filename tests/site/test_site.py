"""The built website in a real browser, every page of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from bs4 import BeautifulSoup

from tests.site.serving import HTML, chromium, pages, served, settle

pytestmark = pytest.mark.site
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
PAGES = pages() if HTML.is_dir() else []
CHAPTERS = [name for name in PAGES if name.startswith("book/chapters/")]
# Pages of source code listings are long and alike: one of them stands for all where time counts. The
# root page only leads on to the book's first page.
LISTINGS = [name for name in PAGES if name.startswith("_modules/pkg")]
READ = [name for name in PAGES if not name.startswith("_modules/") and name != "index.html"]
READ += LISTINGS[:1]


@pytest.fixture(scope="session")
def site():
    with served() as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with chromium() as program:
        yield program


def listened(context, address):
    """A page of `context`, and the list of everything that it complains about."""
    page, heard = context.new_page(), []
    page.on("pageerror", lambda error: heard.append(f"script error: {error}"))
    page.on("console", lambda m: heard.append(f"console: {m.text}") if m.type == "error" else None)
    # A request that a redirect or the end of the test cuts off has not failed.
    page.on(
        "requestfailed",
        lambda r: None if r.failure == "net::ERR_ABORTED" else heard.append(f"failed: {r.url}"),
    )
    page.on("response", lambda r: heard.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((address, "data:", "blob:", "file:"))
            else heard.append(f"outside request: {r.url}")
        ),
    )
    return page, heard


def test_there_are_pages():
    assert "book/chapters/segmentation_metrics.html" in PAGES
    assert "book/what_is_checked.html" in PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_error_and_asks_nobody_else(site, browser, name):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, heard = listened(context, site)
    page.goto(site + name)
    settle(page)
    assert heard == []
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    if "_modules" not in name:
        formulas = page.locator(".math").count()
        assert page.locator("mjx-container").count() >= formulas
    # Phone width: wide things scroll in their box, the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", READ)
def test_a_page_is_accessible(site, browser, name, mode):
    context = browser.new_context(color_scheme=mode, viewport={"width": 1280, "height": 900})
    page, _ = listened(context, site)
    page.goto(site + name)
    settle(page)
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    page.evaluate(AXE)
    found = page.evaluate(
        "rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES
    )
    told = [
        f"{v['id']}: {v['help']}: {node['html'][:160]} ({node.get('failureSummary', '')[:200]})"
        for v in found["violations"]
        for node in v["nodes"][:3]
    ]
    assert told == []
    assert found["passes"]  # it did look at something
    context.close()


def test_axe_sees_a_violation_when_there_is_one(browser):
    page = browser.new_page()
    page.set_content("<html lang='en'><title>t</title><img src='x.png'></html>")
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {runOnly: {type: 'tag', values: ['wcag2a']}})")
    assert "image-alt" in [v["id"] for v in found["violations"]]
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_and_anchors_lead_somewhere(name):
    soup = BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")
    broken = []
    for link in soup.select("a[href]"):
        target, anchor = urldefrag(urljoin(f"http://book/{name}", str(link["href"])))
        if urlparse(target).netloc != "book":
            continue
        path = HTML / unquote(urlparse(target).path).lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file() or (
            anchor and path.suffix == ".html" and unquote(anchor) not in _ids(path)
        ):
            broken.append(str(link["href"]))
    assert broken == []


_known: dict[Path, set[str]] = {}


def _ids(path):
    if path not in _known:
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        _known[path] = {str(tag["id"]) for tag in soup.select("[id]")}
    return _known[path]


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_and_equations_of_a_chapter(name):
    soup = BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")
    drawings = soup.select("figure svg.figure-svg")
    assert len(drawings) >= 3
    for drawing in drawings:
        assert len(str(drawing.get("aria-label"))) > 20
        assert drawing.find_parent("figure").find("figcaption").get_text(strip=True)
        assert "currentColor" in str(drawing)
        assert "#1f2328" not in str(drawing).lower()
    assert all(img.get("alt") for img in soup.select("article img"))
    every = [tag["id"] for tag in soup.select("[id]")]
    assert len(every) == len(set(every))
    numbered = soup.select("div.math span.eqno")
    assert len(numbered) >= 20
    assert len(soup.select("p.evidence")) == len(numbered)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_downloaded_as_a_notebook(site, browser, name):
    soup = BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")
    links = [str(a["href"]) for a in soup.select("a[href$='.ipynb']")]
    assert links
    path = (HTML / name).parent / links[0]
    notebook = json.loads(path.resolve().read_text(encoding="utf-8"))
    assert len(notebook["cells"]) > 20


def test_code_has_copy_buttons(site, browser):
    page = browser.new_page()
    page.goto(site + "book/chapters/segmentation_metrics.html")
    settle(page)
    assert page.locator("button.copybtn").count() > 5
    page.close()


@pytest.mark.parametrize("words", ["Hausdorff", "pixel_accuracy", "panoptic"])
def test_search_finds(site, browser, words):
    page = browser.new_page()
    page.goto(f"{site}search.html?q={words}")
    page.wait_for_selector("ul.search li", timeout=10_000)
    assert page.locator("ul.search li a[href*='segmentation_metrics']").count() >= 1
    page.close()


def test_dark_mode_can_be_chosen_and_figures_follow(site, browser):
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    page.goto(site + "book/chapters/segmentation_metrics.html")
    ink = "getComputedStyle(document.querySelector('svg.figure-svg')).color"
    seen = {page.evaluate(ink)}
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        seen.add(page.evaluate(ink))
    assert len(seen) == 2
    context.close()


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_printed_table_is_cut_off(site, browser, name):
    """At the width of a desk: on a phone tables scroll."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(site + name)
    cut = page.eval_on_selector_all(
        ".cell_output .stream pre",
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)",
    )
    assert page.locator(".cell_output .stream pre").count() > 0
    page.close()
    assert cut == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_captions_are_not_thin(site, browser, name):
    """Light letters on black pass every rule on colours, and nobody can read them."""
    page = browser.new_page()
    page.goto(site + name)
    weights = page.eval_on_selector_all(
        "figcaption .caption-text", "all => all.map(one => getComputedStyle(one).fontWeight)"
    )
    page.close()
    assert weights
    assert all(int(weight) >= 400 for weight in weights)


def test_the_landing_page_shows_the_book_in_one_screen(site, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(site + "book/index.html")
    settle(page)
    assert page.locator("div.ledger-entry mjx-container").count() == 1
    rows = page.locator("table.chapters tbody tr")
    assert rows.count() == 12
    last = rows.nth(11).bounding_box()
    assert last["y"] + last["height"] <= 900
    context.close()


def test_what_is_checked_links_every_entry_to_its_cell(site):
    soup = BeautifulSoup((HTML / "book/what_is_checked.html").read_text("utf-8"), "html.parser")
    rows = soup.select("table.ledger tbody tr")
    assert len(rows) >= 40 * len(CHAPTERS)
    linked = set()
    for row in rows:
        page, _, place = str(row.select_one("a")["href"]).partition("#")
        assert place.startswith("equation-")
        linked.add("book/" + page)
        assert row.select_one("p.evidence .evidence-class")
    assert linked == set(CHAPTERS)


def test_every_equation_links_to_its_evidence(site):
    trust = BeautifulSoup((HTML / "book/what_is_checked.html").read_text("utf-8"), "html.parser")
    anchors = {str(each["id"]) for each in trust.select("table.ledger [id^=evidence-]")}
    linked = set()
    for chapter in CHAPTERS:
        soup = BeautifulSoup((HTML / chapter).read_text("utf-8"), "html.parser")
        for line in soup.select("p.evidence"):
            page, _, place = str(line.select("a")[-1]["href"]).partition("#")
            assert page.endswith("what_is_checked.html")
            linked.add(place)
    assert linked == anchors


def test_the_museum_shows_every_chapters_bugs(site):
    soup = BeautifulSoup((HTML / "book/museum.html").read_text("utf-8"), "html.parser")
    chapters = soup.select("article section > section")
    assert len({section.h2.get_text() for section in chapters if section.h2}) == len(CHAPTERS)
    bugs = [section for section in soup.select("section") if section.h3 and not section.h2]
    assert len(bugs) >= 2 * len(CHAPTERS)
    told = soup.find("p", string=re.compile(f"^{len(bugs)} bugs, from "))
    assert told.find_next("h2") == chapters[0].h2  # before the first chapter, not after the last
    for bug in bugs:
        assert bug.select_one("a[href^='https://']"), bug.h3.get_text()
        assert "equation-" in str(bug.select("a"))
        assert "What it would have cost" in bug.get_text()


def test_the_book_opens_without_a_server(browser):
    page, heard = listened(browser.new_context(), "file:")
    page.goto((HTML / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    page.goto((HTML / "book/chapters/segmentation_metrics.html").as_uri())
    settle(page)
    assert page.locator("mjx-container").count() > 20
    assert heard == []
