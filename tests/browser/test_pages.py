"""Pages in a real browser: they fit every screen, are told to screen readers, and sort by keyboard.

Screenshots are kept in build/screenshots.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

import zipmix
from zipmix.comparison.comparison import compare
from zipmix.comparison.report import write_report

CHROMIUM = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDTHS = (360, 768, 1440)
HOSTILE = '<script>alert("x")</script> a name as long as some people give to the columns of their tables'


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with what may go wrong: a method that failed, one that did not converge, missing cells, odd names."""
    X = zipmix.simulate(90, 5, 2, seed=3).X
    X[::7, 1] = torch.nan
    data = zipmix.Data(X, ("a", "$b", "c & d", HOSTILE, "e"), None, "drawn <here>")
    compared = compare(
        data,
        2,
        methods=("em", "cavi", "gibbs", "exact"),
        n_starts=8,
        n_chains=2,
        settings={"em": {"max_iter": 2}, "gibbs": {"n_warmup": 20, "n_draws": 40}},
    )
    assert "exact" in compared.failures
    assert not compared.fits["em"].converged
    return write_report(compared, tmp_path_factory.mktemp("page") / "report")


def opened(browser: Browser, path: Path, width: int, scheme: str = "light") -> tuple[Page, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else told.append(request.url))
    page.goto(path.as_uri())
    return page, told


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_screen(browser: Browser, report: Path, width: int) -> None:
    page, told = opened(browser, report, width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.eval_on_selector_all("img", "list => list.map(i => [i.naturalWidth, i.clientWidth, i.alt.length])")
    assert len(images) == 9
    assert all(natural > 100 and 50 < shown < width and alt > 20 for natural, shown, alt in images)
    assert not told
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, report: Path, scheme: str) -> None:
    page, _ = opened(browser, report, 768, scheme)
    page.eval_on_selector_all("details", "list => list.forEach(d => d.open = true)")
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    assert found.violations_count == 0, found.generate_report()
    page.close()


def test_columns_sort_by_keyboard(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report, 1440)
    button = page.get_by_role("button", name="time (s)")
    button.focus()
    cells = "table.sortable tbody tr"

    def times() -> list[float]:
        rows = page.locator("table.sortable").first.locator("tbody tr").all()
        return [float(text) for row in rows if (text := row.locator("td").nth(7).inner_text())]

    assert page.locator(cells).count()
    page.keyboard.press("Enter")
    assert times() == sorted(times())
    page.keyboard.press("Enter")
    assert times() == sorted(times(), reverse=True)
    assert page.get_by_role("columnheader", name="time (s)").get_attribute("aria-sort") == "descending"
    page.close()


def test_names_are_text_and_failures_are_told(browser: Browser, report: Path) -> None:
    page, told = opened(browser, report, 768)
    assert page.get_by_text(HOSTILE).first.is_visible()
    assert page.evaluate("document.scripts.length") == 1
    told_text = page.locator("main").inner_text()
    assert "exact did not run: X has 90 rows" in told_text
    assert "em did not converge" in told_text
    assert not told
    page.close()


def test_the_page_prints_on_a4(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report, 1440)
    content = page.pdf(format="A4")
    (SCREENSHOTS / "report.pdf").write_bytes(content)
    assert content.startswith(b"%PDF")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 672, "height": 1000})  # what A4 leaves between margins of 16 mm, at 96 dpi
    assert page.evaluate("document.documentElement.scrollWidth") <= 672
    page.close()


def test_the_page_needs_no_script(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.get_by_role("table").count() >= 4
    assert page.get_by_role("button").count() == 0
    context.close()


STUDY = Path(__file__).parents[2] / "results" / "study" / "study.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_study_fits_the_screen(browser: Browser, width: int) -> None:
    page, told = opened(browser, STUDY, width)
    page.screenshot(path=SCREENSHOTS / f"study-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.eval_on_selector_all("img", "list => list.map(i => [i.naturalWidth, i.clientWidth, i.alt.length])")
    assert len(images) == 2
    assert all(natural > 100 and 50 < shown < width and alt > 20 for natural, shown, alt in images)
    assert page.get_by_role("link").count() > 0
    assert not told
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_page_of_a_study(browser: Browser, scheme: str) -> None:
    page, _ = opened(browser, STUDY, 768, scheme)
    page.eval_on_selector_all("details", "list => list.forEach(d => d.open = true)")
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    assert found.violations_count == 0, found.generate_report()
    page.close()
