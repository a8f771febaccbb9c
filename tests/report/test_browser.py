"""The HTML reports in a real headless Chromium: nothing leaves the page, nothing overflows, everybody can read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tools
from axe_playwright_python.sync_playwright import Axe
from html_pages import HOSTILE, Found, drifted, outcomes, points, short, spoiled_found
from playwright.sync_api import BrowserContext, Page, sync_playwright

from gpudrift.report.html.backfill import render_backfill
from gpudrift.report.html.index import Entry, render_index

PAGES = ("run", "hostile", "insufficient", "index", "backfill")
PHONE, DESKTOP = 360, 1280
PAPER = 695  # px: A4 without its margins


@dataclass
class Watched:
    """A page and all it asked for and said while it was watched."""

    page: Page
    requests: list[str]
    said: list[str]


Opened = Callable[..., Watched]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind, in a directory with letters that addresses must escape."""
    base = tmp_path_factory.getbasetemp()
    found, few = drifted(base), short(base)
    written = {
        "run": found.page(),
        "hostile": hostile(found),
        "insufficient": few.page(),
        "index": render_index("weekly", entries(400), ["2020-W01.json"], backfill="backfill.html"),
        "backfill": backfill(found),
    }
    directory = tmp_path_factory.mktemp("pages") / "a b#é"
    directory.mkdir()
    paths = {}
    for name, text in written.items():
        paths[name] = directory / f"{name}.html"
        paths[name].write_text(text, encoding="utf-8")
    return paths


def hostile(found: Found) -> str:
    return spoiled_found(found, HOSTILE).page()


def backfill(found: Found) -> str:
    weeks = points("sssswaaissswwsssssaaa")
    told = outcomes(tuple(weeks))
    links = {weeks[5].window.label: "reports/x.html"}
    return render_backfill(
        "weekly", "2025", weeks, found.pictures, told, ["a note"], found.result["config"], reports=links
    )


def entries(count: int) -> list[Entry]:
    """The newest first, of all verdicts."""
    verdicts = ("stable", "stable", "stable", "warning", "alert", "insufficient")
    made = []
    for k, point in enumerate(points("s" * count)):
        verdict, start, end = verdicts[k % 6], point.window.start.isoformat(), point.window.end.isoformat()
        told = f"{point.window.label} lies further from the reference than its own windows usually do: 4.1 times."
        score = None if verdict == "insufficient" else 0.001 * (1 + k % 6)
        made.append(
            Entry(
                "weekly",
                point.window.label,
                start,
                end,
                verdict,
                score,
                score and 900 * score,
                0.01,
                0.003,
                340,
                told,
                "abc",
                end,
            )  # type: ignore[arg-type]
        )
    return made[::-1]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """One browser for all tests, with a profile of its own."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=tools.program("chromium"),
            headless=True,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"],
        )
        yield context
        context.close()


@pytest.fixture
def opened(chromium: BrowserContext, pages: dict[str, Path]) -> Iterator[Opened]:
    """``opened(name, width, scheme)``: a page from its file. All it asks for is written down, and refused but for the
    file itself."""
    made: list[Page] = []

    def run(name: str, width: int = DESKTOP, scheme: str = "light", text: str | None = None) -> Watched:
        page = chromium.new_page()
        made.append(page)
        path = pages[name]
        if text is not None:
            path = path.with_name(f"changed-{name}.html")
            path.write_text(text, encoding="utf-8")
        watched = Watched(page, [], [])
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("console", lambda message: watched.said.append(message.text))
        page.on("pageerror", lambda error: watched.said.append(str(error)))
        page.route(lambda url: url != path.as_uri() and not url.startswith("data:"), lambda route: route.abort())
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(path.as_uri())
        return watched

    yield run
    for page in made:
        page.close()


def asked(watched: Watched) -> list[str]:
    """Requests for anything but the page and what it carries."""
    return [url for url in watched.requests if not url.startswith("data:") and url != watched.page.url]


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_asked_for_and_nothing_complains(opened: Opened, name: str) -> None:
    watched = opened(name)
    open_all(watched.page)
    assert watched.requests[0] == watched.page.url
    assert asked(watched) == []
    assert watched.said == []
    broken = "[...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length"
    assert watched.page.evaluate(broken) == 0


def test_what_is_asked_for_would_be_seen(opened: Opened, pages: dict[str, Path]) -> None:
    """The watching itself: a picture from elsewhere is refused by the page's policy; both see it."""
    text = (
        pages["run"].read_text(encoding="utf-8").replace("<main", '<img src="https://example.org/x.png" alt="x"><main')
    )
    watched = opened("run", text=text)
    assert any("Content Security Policy" in said for said in watched.said)
    assert asked(watched) == ["https://example.org/x.png"]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_the_window(opened: Opened, name: str, width: int) -> None:
    page = opened(name, width).page
    open_all(page)
    assert overflow(page) <= 0
    beyond = """[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg, figure img')
        && one.getBoundingClientRect().right > window.innerWidth + 1).map(one => one.outerHTML.slice(0, 99))"""
    assert page.evaluate(beyond) == []


def test_what_overflows_would_be_seen(opened: Opened, pages: dict[str, Path]) -> None:
    text = pages["hostile"].read_text(encoding="utf-8").replace("overflow-wrap: anywhere;", "")
    page = opened("hostile", PHONE, text=text).page
    open_all(page)
    assert overflow(page) > 0


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("run", "light"),
        ("run", "dark"),
        ("index", "light"),
        ("index", "dark"),
        ("backfill", "dark"),
        ("hostile", "light"),
    ],
)
def test_axe_finds_no_violation(opened: Opened, name: str, scheme: str) -> None:
    page = opened(name, DESKTOP if scheme == "light" else PHONE, scheme).page
    open_all(page)
    # 400 rows say nothing that 30 do not
    page.evaluate("[...document.querySelectorAll('tr[data-verdict]')].slice(30).forEach(row => row.remove())")
    assert [(found["id"], found["nodes"][0]["html"]) for found in Axe().run(page).response["violations"]] == []


def test_axe_would_find_a_violation(opened: Opened, pages: dict[str, Path]) -> None:
    text = pages["run"].read_text(encoding="utf-8")
    pale = text.replace("--muted: #53606e", "--muted: #b8c0c8").replace('lang="en"', "")
    found = {one["id"] for one in Axe().run(opened("run", text=pale).page).response["violations"]}
    assert {"color-contrast", "html-has-lang"} <= found


def test_light_and_dark_differ(opened: Opened) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    shades = [opened("run", scheme=scheme).page.evaluate(colour) for scheme in ("light", "dark")]
    assert shades == ["rgb(244, 246, 248)", "rgb(17, 22, 29)"]


@pytest.mark.parametrize("name", ["run", "index", "backfill"])
def test_the_keyboard_reaches_everything(opened: Opened, name: str) -> None:
    page = opened(name).page
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.className") == "skip"
    assert page.evaluate(f"{focused}.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "main"
    expected = {"A", "scroll", "INPUT" if name == "index" else "SUMMARY"}
    kinds: set[str] = set()
    while not expected <= kinds:
        page.keyboard.press("Tab")
        kind, tag, outline = page.evaluate(
            f"[{focused}.className || {focused}.tagName, {focused}.tagName, getComputedStyle({focused}).outlineStyle]"
        )
        assert tag != "BODY", f"the end was reached without {expected - kinds}"
        assert outline == "solid", page.evaluate(f"{focused}.outerHTML.slice(0, 99)")
        kinds.add(kind)
    if "SUMMARY" in expected:
        assert page.evaluate(f"{focused}.parentElement.open") is False
        page.keyboard.press("Enter")
        assert page.evaluate(f"{focused}.parentElement.open") is True


def test_the_index_shows_the_chosen_verdict_alone(opened: Opened) -> None:
    page = opened("index").page
    rows = "[...document.querySelectorAll('tr[data-verdict]')].filter(row => row.offsetHeight)"
    shown = f"{rows}.map(row => row.dataset.verdict)"
    assert len(page.evaluate(shown)) == 400
    page.get_by_label("alert").check()
    assert page.evaluate(shown) == ["alert"] * 66
    page.get_by_label("all").check()
    assert len(page.evaluate(shown)) == 400


def test_links_between_pages_lead_somewhere(chromium: BrowserContext, tmp_path: Path, pages: dict[str, Path]) -> None:
    """From the index to a report whose name must be escaped, and back."""
    label = "2026-10-05+10d"
    (tmp_path / "reports").mkdir()
    own = [replace(entries(1)[0], window=label)]
    (tmp_path / "index.html").write_text(render_index("weekly", own), encoding="utf-8")
    (tmp_path / "reports" / f"{label}.html").write_text(pages["run"].read_text(encoding="utf-8"), encoding="utf-8")
    page = chromium.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.get_by_role("link", name=label).click()
    page.wait_for_selector("text=How sure that is")
    page.get_by_role("link", name="All runs of this job").click()
    page.wait_for_selector("h1:has-text('weekly')")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_print_cuts_no_table_and_opens_what_is_folded(opened: Opened, name: str) -> None:
    page = opened(name, PAPER).page
    page.emulate_media(media="print")
    cut = """[...document.querySelectorAll('table, img, pre, dl')].filter(one => one.offsetHeight
        && one.getBoundingClientRect().right > window.innerWidth + 1).map(one => one.outerHTML.slice(0, 99))"""
    assert page.evaluate(cut) == []
    folded = "[...document.querySelectorAll('details:not(.screen)')].filter(one => one.offsetHeight < 40).length"
    assert page.evaluate(folded) == 0


def test_what_print_cuts_would_be_seen(opened: Opened, pages: dict[str, Path]) -> None:
    text = pages["hostile"].read_text(encoding="utf-8").replace("white-space: normal; overflow-wrap: normal;", "")
    page = opened("hostile", PAPER, text=text.replace("details::details-content", "details::nothing")).page
    page.emulate_media(media="print")
    edge = "Math.max(...[...document.querySelectorAll('table')].map(one => one.getBoundingClientRect().right))"
    assert page.evaluate(edge) > PAPER
    assert page.evaluate(
        "[...document.querySelectorAll('details')].some(one => one.offsetHeight && one.offsetHeight < 40)"
    )


def test_the_print_is_a_pdf_of_a_few_pages(opened: Opened) -> None:
    printed = opened("run").page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 20
    assert re.search(rb"/MediaBox\s*\[0 0 59[45]\.\d+ 84[12]", printed)
