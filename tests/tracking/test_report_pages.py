"""A report in a real browser: nothing is cut, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from analysis.report import write_report

pytestmark = pytest.mark.infra
MANY = ("baseline", "block4", "block8", "delta", "denseformer", "full", "hyper", "mhc", "value")
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
#: Elements that are wider than what holds them, or than the page; or whose content is.
CUT = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect(), wide = document.documentElement.clientWidth;
    return box.right > wide + 1 || box.left < -1 || e.scrollWidth > e.clientWidth + 1
        && getComputedStyle(e).display !== 'inline' && !['TR', 'TBODY', 'THEAD'].includes(e.tagName)
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 60))"""
#: Words of heads and cells that stand on two lines.
BROKEN = """() => [...document.querySelectorAll('th, td')].flatMap(cell => {
    const text = cell.firstChild, found = []
    if (!text || text.nodeType !== Node.TEXT_NODE) return found
    for (const word of text.data.matchAll(/[\\w.]+/g)) {
        const range = document.createRange()
        range.setStart(text, word.index)
        range.setEnd(text, word.index + word[0].length)
        if (range.getClientRects().length > 1) found.push(word[0])
    }
    return found
})"""
#: Colours of text and page, as they are seen.
COLORS = """() => [getComputedStyle(document.body).color,
    getComputedStyle(document.body).backgroundColor].map(c => c.match(/\\d+/g).map(Number))"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    """Of three variants at 14 sizes, two seeds; and of nine, whose tables are wide."""
    found = {}
    for name, variants in (("three", ("baseline", "block8", "full")), ("many", MANY)):
        rng, rows = np.random.default_rng(0), []
        widths = range(12, 68, 4) if name == "three" else (16, 32, 48, 64)
        for width, variant, seed in itertools.product(widths, variants, (0, 1)):
            more = 1.05 if variant != "baseline" else 1.0
            flops = 1e11 * (width / 12) ** 3 * more
            gain = {"full": 1.15, "block8": 1.05}.get(variant, 1.0)
            loss = 8 * (flops * gain) ** -0.045 * np.exp(rng.normal(0, 0.003))
            rows.append((variant, f"d{width}-L8", seed, "finished", flops, flops / 1e9, 1e6, loss))
        columns = ["variant", "size", "seed", "status", "flops", "seconds", "tokens", "val/loss"]
        folder = tmp_path_factory.mktemp(name)
        pd.DataFrame(rows, columns=columns).to_csv(folder / "runs.csv", index=False)
        report = write_report(folder / "runs.csv", folder / "report")
        found[name] = report.html.as_uri()
    return found


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param


@pytest.fixture(params=SCREENS)
def screen(request) -> str:
    return request.param


@pytest.fixture
def page(browser, screen, scheme):
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=2 if screen == "phone" else 1,
        color_scheme=scheme,
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def test_nothing_is_cut_or_wider_than_its_page(reports, page) -> None:
    for address in reports.values():
        page.goto(address)
        assert page.evaluate(CUT) == []
        assert page.evaluate(BROKEN) == []


def test_a_phone_has_a_panel_a_row_and_a_desk_two(reports, page, screen) -> None:
    page.goto(reports["three"])
    boxes = [image.bounding_box() for image in page.locator("p:has(> img + img)").first
             .locator("img").all()]  # fmt: skip
    assert len(boxes) == 2
    beside = abs(boxes[0]["y"] - boxes[1]["y"]) < 2
    assert beside == (screen == "desk")
    # of letters of 9 points in 4.8 inches, on a screen of 96 dots an inch
    shown = boxes[0]["width"] / (4.8 * 96) * 12
    assert shown >= 8


def test_text_is_told_from_the_page_by_day_and_by_night(reports, page, scheme) -> None:
    page.goto(reports["three"])
    text, ground = page.evaluate(COLORS)
    assert (sum(ground[:3]) > 382) == (scheme == "light")
    assert abs(sum(text[:3]) - sum(ground[:3])) > 400


def test_a_row_of_a_wide_table_says_what_its_values_are(reports, page, screen) -> None:
    """As a list, with the head of its column before each value."""
    page.goto(reports["many"])
    cell = page.locator("table.wide td").nth(1)
    head = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert head == '"baseline"'
    assert page.locator("table.wide thead").first.is_hidden()


def test_the_pictures_of_the_docs(finished, browser, page, screen, scheme, screenshots) -> None:
    """Of a report on runs that were trained; by day at a desk, by night on a phone."""
    report = finished / "sweeps" / "quickstart" / "report" / "report.html"
    page.goto(report.as_uri())
    assert page.evaluate(CUT) == []
    words = page.evaluate(BROKEN)
    assert [word for word in words if not re.fullmatch("[0-9a-f]{32,}", word)] == []  # hashes
    if (screen, scheme) == ("desk", "light"):
        page.set_viewport_size({"width": 1280, "height": 1500})
        screenshots.keep(page, "report")
        sharp = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=2)
        sharp.goto(report.as_uri())
        screenshots.keep(sharp.locator("p:has(> img + img)").first, "quickstart-loss")
        sharp.close()
    if (screen, scheme) == ("phone", "dark"):
        page.evaluate("document.querySelector('#part-1').scrollIntoView()")
        screenshots.keep(page, "report_phone")
