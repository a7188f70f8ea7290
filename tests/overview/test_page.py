"""The page in a real browser: read, touched, driven by keys; what it holds stays text."""

from __future__ import annotations

import os
import re

import pyarrow as pa
import pytest

from memworker import show_table
from tests.browser import browser
from tests.overview.test_overview import stored

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
BREAKS_OUT = "</script><!--<script>\u2028'\"&lt; end"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    texts = [HOSTILE, BREAKS_OUT, "green tea", "x" * 700, *(f"note {i} on tea" for i in range(60))]
    notes = pa.array([f'{{"kind": "k{i % 3}"}}' for i in range(64)], pa.string())
    days, users = [i // 3 for i in range(64)], [f"<b>user {i % 11}" for i in range(64)]
    table = stored(folder, texts, days=days, users=users, metadata_json=notes)
    show_table(table.db, "notes", plot=folder / "page.html")
    show_table(table.db, "notes", plot=folder / "bare.html", texts=False)
    show_table(table.db, "notes", plot=folder / "none.html", where={"user_id": "nobody"})
    table._handle.drop_columns(["text", "created_at", "metadata", "user_id"])
    show_table(table.db, "notes", plot=folder / "poor.html")
    return folder.as_uri()


def place_of(page, text):
    return page.ask(f"columns.text.findIndex((each) => each.includes({text!r}))")


def test_it_says_what_the_table_holds_and_asks_for_nothing(page, where):
    page.open(f"{where}/page.html")
    assert page.problems == [] and page.asked_for == [f"{where}/page.html"]
    assert page.text("h1") == "notes" and "64" in page.text("#cards")
    assert "<b>user 0" in page.text("#names") and "2 more with" in page.text("#others")
    assert page.ask("told.points.length") == 64
    assert "holds texts" in page.text("#private") and "highest 3" in page.text("#charts")


def test_what_texts_and_names_hold_stays_text(page, where):
    page.open(f"{where}/page.html")
    for text, part in ((HOSTILE, "onerror"), (BREAKS_OUT, " end")):
        page.ask(f"choose({place_of(page, part)})")
        assert page.ask("at('text').textContent") == text
    page.ask("circles.forEach((_, i) => { hint(i); choose(i); })")
    page.ask("document.querySelector('.name').click()")
    assert page.ask("document.title") == "notes · memworker"
    inside = "document.querySelectorAll('main script, main img, main b b, h2 b').length"
    assert page.problems == [] and page.ask(inside) == 0


def test_a_tap_shows_a_row_and_its_nearest(page, where):
    page.open(f"{where}/page.html", width=390)
    i = place_of(page, "xxx")
    page.tap(*page.middle(f"#points circle:nth-of-type({i + 1})"))
    assert page.ask("chosen") == i and page.text("#text") == "x" * 600 + "…"
    assert "of which the first 600 are here" in page.text("#facts")
    assert page.ask("document.querySelectorAll('#near button').length") == 8
    page.ask("document.querySelector('#near button').click()")
    assert page.ask("chosen") == page.ask(f"told.nearest[{i}][0][0]") != i


def test_a_mouse_over_a_point_shows_its_text(page, where):
    page.open(f"{where}/page.html")
    i = place_of(page, "green tea")
    page.hover(*page.middle(f"#points circle:nth-of-type({i + 1})"))
    assert page.text("#tip") == "green tea" and page.ask("chosen") == -1
    page.hover(*page.middle("#days"))
    assert re.search(
        r"2026-03-\d\d: 3 rows", page.ask("document.querySelector('#days ~ .told').textContent")
    )


def test_keys_reach_all_of_it(page, where):
    page.open(f"{where}/page.html")
    reached = []
    for _ in range(22):
        page.press("Tab")
        reached.append(page.ask("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "days":
            page.press("ArrowRight")
            assert "2026-03-01: 3 rows" in page.ask("document.activeElement.parentNode.textContent")
        if reached[-1] == "search":
            page.type("GREEN")
            assert page.text("#hits").startswith("1 of 64")
        if reached[-1] == "row" and "green" in page.ask("document.activeElement.textContent"):
            page.press("Enter")
            assert page.text("#text") == "green tea"
            page.ask("at('search').value = ''; find()")
            page.ask("at('search').focus()")
        if reached[-1] == "points":
            before = page.ask("chosen")
            page.press("ArrowRight"), page.press("ArrowLeft")
            assert page.ask("chosen") != -1 and before != -1
            break
    assert reached[-1] == "points" and {"name", "days", "lengths", "colour", "row"} <= set(reached)


def test_a_name_leaves_its_rows_alone(page, where):
    page.open(f"{where}/page.html")
    page.ask("document.querySelector('.name').click()")
    assert page.ask("document.querySelectorAll('#points circle:not(.off)').length") == 6
    assert page.text("#days-name").startswith("Rows of <b>user 0 by")
    for colour in ("day", "length", "user_id"):
        page.ask(f"at('colour').value = '{colour}'; paint()")
        assert page.ask("new Set(circles.map((each) => each.style.fill)).size") > 1, colour
    assert page.problems == []


def test_without_texts_or_rows_it_says_so(page, where):
    page.open(f"{where}/bare.html")
    page.ask("choose(0)")
    assert page.problems == [] and page.ask("at('search').hidden")
    assert "no texts" in page.text("#private") and "characters" in page.text("#facts")
    page.open(f"{where}/poor.html")
    page.ask("choose(0); hint(1); paint(); find()")
    assert page.problems == [] and "created_at" in page.text("#said")
    assert page.ask("told.points.length") == 64
    page.open(f"{where}/none.html")
    assert page.problems == [] and page.text("#empty") == "No rows meet the filter."
    assert page.ask("at('charts').hidden && at('map').hidden")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(page, where, width, dark):
    page.open(f"{where}/page.html", width=width, dark=dark)
    page.ask("choose(3)")
    assert page.ask("document.documentElement.scrollWidth") <= width
    # What WCAG asks of text, and of what is drawn.
    assert page.ask(CONTRAST.format(colours="'--text', '--soft', '--accent'")) >= 4.5
    drawn = ", ".join(f"'--c{i}'" for i in range(7))
    assert page.ask(CONTRAST.format(colours=f"{drawn}, '--rest'")) >= 3
    if kept := os.environ.get("MEMWORKER_KEEP_SCREENSHOTS"):
        name = f"{kept}/table-{width}-{'dark' if dark else 'light'}.png"
        with open(name, "wb") as file:
            file.write(page.photograph())


CONTRAST = """(() => {{
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {{
    const hex = style.getPropertyValue(name).trim().slice(1);
    const full = hex.length === 3 ? [...hex].map((c) => c + c).join("") : hex;
    const parts = [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16) / 255);
    const [r, g, b] = parts.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const grounds = ["--ground", "--card"].map(light);
  return Math.min(...[{colours}].flatMap((name) => grounds.map((on) => ratio(light(name), on))));
}})()"""
