"""The report in a real browser: filters by mouse and keyboard, on a phone, in the dark, and nothing fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ip2p.report import write_comparison, write_report
from tests.example_run import synthetic_config, write_synthetic_run

pytestmark = pytest.mark.slow
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
CARDS = "#pairs-cards > .card"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole synthetic run's page."""
    return write_report(write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("runs") / "synthetic")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def wrong() -> Iterator[list[str]]:
    """What went wrong in the browser, which must be nothing."""
    found: list[str] = []
    yield found
    assert found == []


def look_at(browser: Any, page: Path, wrong: list[str], fragment: str = "", **kind: Any) -> Any:
    """The page, opened; console errors and requests of anything but the file itself are noted."""
    opened = browser.new_context(reduced_motion="reduce", **{"viewport": DESK, **kind}).new_page()
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if _is_fetched(request.url) else None)
    opened.goto(page.as_uri() + fragment)
    return opened


def _is_fetched(url: str) -> bool:
    return not url.startswith(("data:", "file:")) or (url.startswith("file:") and ".html" not in url)


def status(opened: Any, words: str, name: str = "pairs") -> None:
    """Waits until the count says so."""
    asked = "([place, words]) => document.querySelector(place).innerText.includes(words)"
    opened.wait_for_function(asked, arg=[f"[data-sheet={name}] .shown", words], timeout=5000)


def test_filters_narrow_the_sheet_count_and_stand_in_the_address(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong)
    status(opened, "Showing 24 of 240 pairs")
    opened.select_option("#pairs-type", "colour")
    opened.select_option("#pairs-verdict", "low_direction")
    assert opened.locator(CARDS).evaluate_all(
        "cards => cards.length && cards.every(card => card.dataset.type === 'colour' "
        "&& card.dataset.verdict === 'low_direction')"
    )
    num = opened.locator(CARDS).count()
    status(opened, f"Showing {num} of {num} matching pairs; 240 are on this page.")
    assert "pairs.type=colour" in opened.url and "pairs.verdict=low_direction" in opened.url
    opened.click("[data-sheet=pairs] [data-clear]")
    status(opened, "Showing 24 of 240 pairs")
    assert "#" not in opened.url


def test_an_address_brings_its_filter_back(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong, "#pairs.oracle=wrong&pairs.clip_image=0.5..0.7&edits.type=size")
    scores = opened.locator(CARDS).evaluate_all("cards => cards.map(card => Number(card.dataset.clip_image))")
    assert scores and all(0.5 <= score <= 0.7 for score in scores)
    assert opened.locator(f'{CARDS}:not([data-oracle="wrong"])').count() == 0
    assert opened.input_value("#edits-type") == "size"
    assert opened.locator("#pairs").bounding_box()["y"] < 400
    opened.goto(report.as_uri() + "#pairs.type=nonsense")
    status(opened, "Showing 24 of 240 pairs")


def test_the_order_follows_a_score_and_more_are_shown_when_asked(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong)
    opened.select_option("#pairs-order", "clip_direction.down")
    opened.click("[data-more=pairs]")
    scores = opened.locator(CARDS).evaluate_all("cards => cards.map(card => Number(card.dataset.clip_direction))")
    assert len(scores) == 48 and scores == sorted(scores, reverse=True)
    assert opened.evaluate("document.activeElement === document.querySelectorAll('#pairs-cards > .card')[24]")


def test_filters_work_by_keyboard_alone(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong)
    opened.focus("#pairs-type")
    opened.keyboard.press("ArrowDown")
    chosen = opened.input_value("#pairs-type")
    assert chosen and opened.locator(f'{CARDS}:not([data-type="{chosen}"])').count() == 0
    opened.focus("[data-sheet=pairs] summary")
    opened.keyboard.press("Enter")
    opened.focus("#pairs-clip_image-low")
    for _ in range(30):
        opened.keyboard.press("ArrowRight")
    low = float(opened.input_value("#pairs-clip_image-low"))
    scores = opened.locator(CARDS).evaluate_all("cards => cards.map(card => Number(card.dataset.clip_image))")
    assert scores and min(scores) >= low > 0
    opened.focus("#pairs-clip_image-high")
    opened.keyboard.press("Home")
    assert opened.input_value("#pairs-clip_image-low") == opened.input_value("#pairs-clip_image-high")
    status(opened, "None of the 240 pairs")


def test_the_tab_key_reaches_every_control(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong)
    opened.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    wanted = opened.evaluate(
        "() => { let number = 0; for (const each of document.querySelectorAll("
        "'a[href], select, input, button:not([hidden]), summary, [tabindex=\"0\"]')) each.dataset.reached = number++;"
        " return number; }"
    )
    seen: list[int] = []
    for _ in range(wanted + 5):
        opened.keyboard.press("Tab")
        number = opened.evaluate("document.activeElement.dataset.reached")
        if number is not None and int(number) not in seen:
            seen.append(int(number))
    assert sorted(seen) == list(range(wanted)) and seen == sorted(seen)


def test_every_control_has_a_name_and_a_finger_can_hit_it(browser: Any, report: Path, wrong: list[str]) -> None:
    opened = look_at(browser, report, wrong, viewport=PHONE)
    opened.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    unnamed = "all => all.filter(each => each.labels.length !== 1 || !each.labels[0].innerText.trim()).length"
    assert opened.locator("select, input").evaluate_all(unnamed) == 0
    assert opened.locator("select").evaluate_all("all => all.every(each => each.offsetHeight >= 44)")
    assert opened.locator("input").evaluate_all("all => all.every(each => each.offsetHeight >= 24)")
    assert opened.locator("[role=status][aria-live=polite]").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(browser: Any, report: Path, wrong: list[str], scheme: str) -> None:
    opened = look_at(browser, report, wrong, viewport=PHONE, color_scheme=scheme)
    opened.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = "all => all.filter(each => each.innerText && parseFloat(getComputedStyle(each).fontSize) < 12).length"
    assert opened.locator("p, span, td, th, dt, dd, li, label, a, button").evaluate_all(small) == 0


def test_without_scripts_the_sheet_is_whole_and_no_dead_control_is_seen(
    browser: Any, report: Path, wrong: list[str]
) -> None:
    opened = look_at(browser, report, wrong, java_script_enabled=False)
    assert opened.locator(CARDS).count() == 240
    assert (
        not opened.locator("[data-sheet=pairs]").is_visible() and not opened.locator("[data-more=pairs]").is_visible()
    )


def test_a_comparison_is_filtered_by_who_succeeds(browser: Any, tmp_path: Path, report: Path, wrong: list[str]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(report.parent.parent, folder)
    page = write_comparison([synthetic_config(folder) for folder in folders], tmp_path / "comparison.html")
    opened = look_at(browser, page, wrong, viewport=PHONE)
    assert opened.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    status(opened, "Showing 12 of 140 edits", "edits")
    opened.select_option("#edits-verdict", "every run")
    cards = opened.locator("#edits-cards > .card")
    assert cards.count() > 0
    assert cards.evaluate_all("all => all.every(card => card.querySelectorAll('.badge.good').length === 2)")
    assert cards.first.locator("img").count() == 3


def luminance(colour: str) -> float:
    """Relative luminance of a hexadecimal colour, as WCAG defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXTS = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("page", "card", "soft")]
TEXTS += [("good", "good-soft"), ("bad", "bad-soft")]
GRAPHICS = [(name, "card") for name in ("one", "two", "three", "four", "five", "six", "control")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_is_told_from_its_ground(report: Path, scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", report.read_text(), re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))
    assert [pair for pair in TEXTS if contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    assert [pair for pair in GRAPHICS if contrast(colours[pair[0]], colours[pair[1]]) < 3] == []
