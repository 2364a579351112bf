"""The report in a real browser: it draws, asks nobody for anything, answers to mouse, keys and small screens.

Debian's chromium and chromedriver, driven by selenium; without them these tests are skipped. What people without
eyes, mouse or much contrast meet is judged by axe-core, which comes inside axe-playwright-python: the newest axe
that pip installs. Its script is injected by the driver, whose scripts the page's content security policy does not
concern.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qkverify import report, results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NEEDED = {
    "selenium": find_spec("selenium"),
    "axe-playwright-python": find_spec("axe_playwright_python"),
    "chromium": CHROMIUM,
    "chromedriver": DRIVER,
}
LACKING = [name for name, present in NEEDED.items() if not present]
pytestmark = pytest.mark.skipif(
    bool(LACKING),
    reason=f"needs {', '.join(LACKING)} (pip install 'qkverify[dev]'; apt install chromium chromium-driver)",
)

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REPORTS = Path(__file__).parents[2] / "reports"
CELL = "cell-synthetic_broken-cpu-float32-masking"
WAIT_SECONDS = 10.0
LEGIBLE = 4.5  # WCAG 2.1, 1.4.3: contrast of text with its ground
LARGE = 3.0  # and of large text

# The contrast of every text that can be seen. The ground is the nearest opaque colour behind it; where that
# is a gradient, every colour of the gradient.
CONTRAST = """
const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ratio = (a, b) => {
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const grounds = (node) => {
  for (let e = node; e; e = e.parentElement) {
    const style = getComputedStyle(e), flat = parse(style.backgroundColor), found = [];
    if (style.backgroundImage !== "none")
      found.push(...style.backgroundImage.match(/rgba?\\([^)]*\\)/g).map(parse));
    if (flat.length === 3 || flat[3] > 0.99) return [flat, ...found];
    if (found.length) return [...grounds(e.parentElement), ...found];
  }
  return [[255, 255, 255]];
};
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
  if (!text || e.closest("script, style, [hidden]") || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), svg = e.ownerSVGElement;
  const ink = parse(svg ? style.fill : style.color), size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
  const least = Math.min(...grounds(svg ? svg.parentElement : e).map((ground) => ratio(ink, ground)));
  if (least < arguments[large ? 1 : 0])
    poor.push(`${text.slice(0, 40)} in ${e.outerHTML.slice(0, 40)}: ${least.toFixed(2)}`);
}
return [...new Set(poor)];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page over the synthetic records, as a file's address; the page over two devices stands in the folder above."""
    spec = spec_from_file_location("synthetic_results", Path(__file__).parents[1] / "synthetic_results.py")
    assert spec
    assert spec.loader
    synthetic = module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    folder = tmp_path_factory.mktemp("reports")
    for device in ("a-device", "b-device"):
        with results.Writer(folder / device / report.RESULTS) as writer:
            for record in synthetic.records():
                writer.append(record)
    report.write_index(folder)
    page, _ = report.write(folder / "a-device" / report.RESULTS, folder / "a-device")
    return page.as_uri()


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page over results of a real machine, made anew."""
    files = sorted(REPORTS.glob("*/results.jsonl"))
    if not files:
        pytest.skip("there are no committed results")
    return report.write(files[0], tmp_path_factory.mktemp("committed"))[0].as_uri()


@pytest.fixture(scope="module")
def addresses(address: str) -> dict[str, str]:
    return {
        "page": address,
        "panel": f"{address}#{CELL}",
        "index": address.replace("a-device/index.html", "index.html"),
    }


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The browser with the page freshly opened on a desktop, in light; whatever a test sets is undone."""
    show(browser, address)
    yield browser
    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        browser.execute_cdp_cmd(command, {})


def show(
    browser: Any,
    address: str,
    *,
    scheme: str = "light",
    width: int = 1400,
    height: int = 900,
    phone: bool = False,
) -> None:
    browser.get("about:blank")  # else an address that differs in its fragment only is no new page
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)
    until(lambda: browser.execute_script("return document.readyState") == "complete")


def one(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def shown(page: Any, selector: str) -> list[Any]:
    return [e for e in page.find_elements("css selector", selector) if e.is_displayed()]


def bring_into_view(page: Any, element: Any) -> None:
    """Scroll to an element, and past the frame in which the scrolling is told to the page."""
    script = "arguments[0].scrollIntoView({block: 'center'}); "
    script += "requestAnimationFrame(() => setTimeout(arguments[1]));"
    page.execute_async_script(script, element)


def press(page: Any, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(page).send_keys(getattr(Keys, key)).perform()


def until(holds: Callable[[], Any]) -> None:
    """Wait for what the page does on its next turn."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("which", ["panel", "index"])
def test_nothing_is_requested_and_nothing_complains(
    browser: Any, addresses: dict[str, str], which: str
) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what came before
    show(browser, addresses[which])
    until(lambda: which == "index" or one(browser, "dialog").get_attribute("open"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    requested = [
        s["request"]["url"] for s in sent if not s["documentURL"].startswith("chrome")
    ]  # the browser's own pages load too
    expected = addresses[which].partition("#")[0]
    assert {url for url in requested if not url.startswith(("data:", "about:"))} == {expected}
    assert browser.get_log("browser") == []


def test_every_chart_is_drawn(page: Any) -> None:
    script = """return [...document.querySelectorAll('svg.chart')].map((chart) => ({
      hidden: !chart.getClientRects().length,
      marks: chart.querySelectorAll('use').length,
      markup: chart.outerHTML,
    }))"""
    charts = page.execute_script(script)
    assert len(charts) > 10
    assert all(chart["marks"] for chart in charts)
    assert not any(word in chart["markup"] for chart in charts for word in ("NaN", "Infinity", "inf"))
    assert sum(not chart["hidden"] for chart in charts) >= 10
    mark = page.execute_script("return document.querySelector('.chart use').getBoundingClientRect().width")
    assert mark > 2


def test_the_verdict_is_on_the_first_screen(page: Any) -> None:
    assert one(page, "h1").text.endswith("2 of 7 implementations break a law; 1 has known failures")
    bottom = page.execute_script("return document.querySelector('.overview').getBoundingClientRect().bottom")
    assert bottom < 900
    before = page.execute_script("return document.querySelector('table')")
    assert before.get_attribute("class") == "overview"  # the first table of the page


@pytest.mark.parametrize("width", [320, 390, 760, 1000, 1400])
def test_no_cell_of_the_first_table_is_cut_off(page: Any, address: str, width: int) -> None:
    show(page, address, width=width, phone=width < 760)
    outside = page.execute_script("""const ends = document.documentElement.clientWidth;
      return [...document.querySelectorAll('.overview td, .overview tbody th')]
        .filter((e) => e.getClientRects().length)
        .filter((e) => { const b = e.getBoundingClientRect(); return b.right > ends || e.scrollWidth > e.clientWidth + 1; })
        .map((e) => e.textContent)""")
    assert outside == []


def test_on_a_phone_every_number_of_the_first_table_has_its_name(page: Any, address: str) -> None:
    show(page, address, width=390, height=844, phone=True)
    names = page.execute_script("""return [...document.querySelectorAll('.overview tbody tr:first-child td.number')]
      .map((e) => getComputedStyle(e, '::before').content)""")
    assert names
    assert all(len(name.strip('"')) > 3 for name in names)


def test_a_click_on_a_square_opens_its_laws_and_counterexample(page: Any) -> None:
    one(page, f"[data-cell='{CELL}'] a").click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    panel = one(page, "dialog")
    assert "synthetic_broken: masking" in panel.text
    assert "causal looks aligned top-left" in panel.text
    assert "qkverify replay 7f3a" in panel.text
    assert len(shown(page, "dialog tbody tr")) == 6
    assert page.current_url.endswith("#" + CELL)


def test_the_keyboard_opens_a_square_and_escape_returns_to_it(page: Any) -> None:
    page.execute_script(f"document.querySelector(\"[data-cell='{CELL}'] a\").focus()")
    press(page, "ENTER")
    until(lambda: one(page, "dialog").get_attribute("open"))
    press(page, "ESCAPE")
    until(lambda: not one(page, "dialog").get_attribute("open"))
    assert page.execute_script("return document.activeElement.parentElement.dataset.cell") == CELL
    until(lambda: "#" not in page.current_url)


def test_an_address_leads_to_a_square(browser: Any, address: str) -> None:
    show(browser, f"{address}#{CELL}")
    until(lambda: one(browser, "dialog").get_attribute("open"))
    assert "causal_alignment_when_lengths_differ" in one(browser, "dialog").text


def test_filters_hide_rows_cards_and_lines(page: Any) -> None:
    one(page, ".filters > summary").click()
    one(page, ".filters input[value=synthetic_flash]").click()
    until(lambda: not shown(page, ".matrix tbody[data-implementation=synthetic_flash]"))
    assert not shown(page, ".series[data-implementation=synthetic_flash]")
    assert not shown(page, "article[data-implementation=synthetic_flash]")
    assert shown(page, ".series[data-implementation=synthetic_eager]")
    one(page, ".filters input[value=float32]").click()
    assert not shown(page, "[data-dtype=float32]")
    assert one(page, ".tab:not([hidden]) h3").get_attribute("textContent").split() == ["bfloat16", "cpu"]
    assert one(page, ".filters .count").text == "2 hidden"
    one(page, ".filters button[type=reset]").click()
    until(lambda: shown(page, ".matrix tbody[data-implementation=synthetic_flash]"))


def test_tabs_are_changed_by_arrow_keys(page: Any) -> None:
    tabs = page.find_elements("css selector", "#speed [role=tab]")
    assert [tab.text.split() for tab in tabs] == [["float32", "cpu"], ["bfloat16", "cpu"]]
    assert [tab.get_attribute("aria-selected") for tab in tabs] == ["true", "false"]
    page.execute_script("arguments[0].focus()", tabs[0])
    press(page, "ARROW_RIGHT")
    assert [tab.get_attribute("aria-selected") for tab in tabs] == ["false", "true"]
    assert len(shown(page, "#speed [role=tabpanel]")) == 1


def test_tooltips_come_by_pointer_and_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    mark = one(page, "#speed .tab:not([hidden]) .chart use")
    bring_into_view(page, mark)
    ActionChains(page).move_to_element(mark).perform()
    until(lambda: one(page, ".tip").is_displayed())
    assert "synthetic_" in one(page, ".tip").text
    page.execute_script("document.querySelector('#speed .tab:not([hidden]) .chart').focus()")
    press(page, "ARROW_RIGHT")
    first = one(page, ".tip").text
    press(page, "ARROW_RIGHT")
    assert one(page, ".tip").text != first
    press(page, "ESCAPE")
    assert not one(page, ".tip").is_displayed()


def test_a_picture_is_drawn_and_tells_the_number_under_the_pointer(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    script = """const done = arguments[0], image = new Image();
      image.onload = () => done([image.naturalWidth, image.naturalHeight]);
      image.onerror = () => done("broken");
      image.src = document.querySelector('.heat.signed image').getAttribute('href');"""
    assert page.execute_async_script(script) == [300, 20]
    chart = one(page, ".heat.weights image")
    bring_into_view(page, chart)
    ActionChains(page).move_to_element_with_offset(chart, 5, 5).perform()
    until(lambda: one(page, ".tip").is_displayed())
    row, _, column = one(page, ".tip").text.partition(": ")[0].partition(" → ")
    assert {row, column} <= set(synthetic_tokens)
    before = one(page, ".tip").text
    ActionChains(page).move_to_element_with_offset(chart, 25, 5).perform()
    until(lambda: one(page, ".tip").text != before)


synthetic_tokens = ("[CLS]", "no", "such", "<model>", "[SEP]")


def test_the_copy_button_copies_the_replay_line_or_selects_it(page: Any) -> None:
    button = one(page, "article .copy")
    bring_into_view(page, button)
    button.click()
    until(
        lambda: (
            button.text == "Copied"
            or page.execute_script("return String(getSelection())") == "qkverify replay 7f3a"
        )
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_only_tables_scroll_sideways(page: Any, address: str, width: int) -> None:
    show(page, address, width=width, phone=width < 768)
    unfold(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def wider_boxes(page: Any) -> list[Any]:
    """Names of the boxes that are wider than they show, and whether each says so."""
    unfold(page)
    page.execute_script("for (const tab of document.querySelectorAll('.tab')) tab.hidden = false")
    return list(
        page.execute_async_script("""const done = arguments[0];
      requestAnimationFrame(() => setTimeout(() => done([...document.querySelectorAll('.scroll, .contents > div')]
        .filter((box) => box.scrollWidth > box.clientWidth + 1)
        .map((box) => [box.getAttribute('aria-label') || 'contents', box.classList.contains('more')])), 100))""")
    )


def test_on_a_desktop_nothing_is_cut_off(browser: Any, committed: str) -> None:
    """On the committed report, which has all kinds of tables, names and times."""
    show(browser, committed)
    assert wider_boxes(browser) == []


def test_on_a_phone_what_is_wider_than_the_screen_says_so(browser: Any, committed: str) -> None:
    show(browser, committed, width=390, height=844, phone=True)
    wide = wider_boxes(browser)
    assert wide
    assert [name for name, says in wide if not says] == []
    assert not [
        name for name, _ in wide if name.startswith("Verdict")
    ]  # squares stand below one another there
    assert (
        len(shown(browser, ".scroll-sign")) == len(wide) - 1
    )  # each table has a line, the contents their fade
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= 390


@pytest.mark.parametrize("width", [390, 1400])
def test_text_in_charts_is_large_enough(page: Any, address: str, width: int) -> None:
    show(page, address, width=width, phone=width < 768)
    unfold(page)
    smallest = page.execute_script("""return Math.min(...[...document.querySelectorAll('.chart:not(.power) text')]
      .filter((e) => e.getClientRects().length)
      .map((e) => parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a))""")
    assert smallest >= 11.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page: Any, address: str, scheme: str) -> None:
    show(page, address, scheme=scheme)
    unfold(page)
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(252, 251, 248)" if scheme == "light" else "rgb(20, 22, 26)"
    )
    assert page.execute_script(CONTRAST, LEGIBLE, LARGE) == []


def test_without_a_script_everything_that_matters_is_there(browser: Any, address: str) -> None:
    with without_script(browser):
        show(browser, address)
        text = one(browser, "body").text
    assert "2 of 7 implementations break a law" in text
    assert "causal looks aligned top-left" in text
    assert "synthetic-gpt2" in text
    assert "bfloat16" in text


def unfold(page: Any) -> None:
    page.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")


@contextlib.contextmanager
def without_script(browser: Any) -> Iterator[None]:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# -- Everybody can read it -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe() -> str:
    spec = find_spec("axe_playwright_python")
    assert spec
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


def accused(browser: Any, axe: str) -> list[str]:
    """Rules of axe-core that the open page breaks, with the first element of each."""
    browser.execute_script(axe)
    violations = browser.execute_async_script(
        "axe.run(document, { resultTypes: ['violations'] }).then((found) => arguments[0](found.violations))"
    )
    return [
        f"{v['impact']}: {v['id']}, {len(v['nodes'])} times, first {v['nodes'][0]['html'][:200]}"
        for v in violations
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("which", ["page", "panel", "index"])
def test_axe_finds_nothing(
    browser: Any, addresses: dict[str, str], axe: str, which: str, width: int, height: int, scheme: str
) -> None:
    show(browser, addresses[which], scheme=scheme, width=width, height=height, phone=width < 768)
    if which == "panel":
        until(lambda: one(browser, "dialog").get_attribute("open"))
    unfold(browser)
    assert accused(browser, axe) == []


def test_axe_finds_what_is_wrong(page: Any, axe: str) -> None:
    """Else the test above could not fail."""
    page.execute_script("""
      document.querySelector('.copy').textContent = '';
      document.querySelector('.lead').style.color = '#ddd';
    """)
    assert {line.split(",")[0].split()[1] for line in accused(page, axe)} == {"button-name", "color-contrast"}


def test_headings_descend_without_gaps(page: Any) -> None:
    levels = page.execute_script("""return [...document.querySelectorAll('main h2, main h3, main h4, h1')]
      .filter((h) => !h.closest('dialog')).map((h) => +h.tagName[1])""")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_landmarks_are_one_of_each_and_named(page: Any) -> None:
    counts = page.execute_script(
        "return Object.fromEntries(['main', 'body > header', 'footer', 'nav'].map("
        "(tag) => [tag, document.querySelectorAll(tag).length]))"
    )
    assert counts == {"main": 1, "body > header": 1, "footer": 1, "nav": 1}
    named = page.execute_script("""return [...document.querySelectorAll('main > section, nav')].every(
      (e) => e.ariaLabel || document.getElementById(e.getAttribute('aria-labelledby')).textContent)""")
    assert named


# -- The keyboard -------------------------------------------------------------------------------------------


def focused(page: Any) -> str:
    return str(page.execute_script("return document.activeElement.outerHTML.slice(0, 80)"))


def test_the_first_stop_of_the_keyboard_skips_to_the_verdicts(page: Any) -> None:
    press(page, "TAB")
    assert 'class="skip"' in focused(page)
    assert page.execute_script("return document.activeElement.getBoundingClientRect().left") >= 0
    press(page, "ENTER")
    assert page.current_url.endswith("#verdicts")
    stops = []
    for _ in range(3):
        press(page, "TAB")
        stops.append(page.execute_script("return document.activeElement.closest('section')?.id"))
    assert stops == ["verdicts"] * 3


def test_tabs_take_one_stop_and_what_is_hidden_none(page: Any) -> None:
    """Every element that the keyboard stops at is one that can be seen, and of a row of tabs only the chosen one."""
    stops = page.execute_script("""return [...document.querySelectorAll('a, button, input, summary, [tabindex]')]
      .filter((e) => e.tabIndex >= 0 && e.checkVisibility({ visibilityProperty: true }))
      .map((e) => [e.getAttribute('role'), e.getAttribute('aria-selected')])""")
    rows = page.execute_script("return document.querySelectorAll('[role=tablist]').length")
    assert rows > 0
    assert [chosen for role, chosen in stops if role == "tab"] == ["true"] * rows
    assert not page.execute_script(
        'return document.querySelectorAll(\'[tabindex]:not([tabindex="0"], [tabindex="-1"])\').length'
    )


def test_the_panel_keeps_the_focus_inside(page: Any) -> None:
    one(page, f"[data-cell='{CELL}'] a").click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    for _ in range(12):
        press(page, "TAB")
        assert page.execute_script(
            "return document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )


def test_the_back_button_closes_the_panel(page: Any) -> None:
    one(page, f"[data-cell='{CELL}'] a").click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    page.back()
    until(lambda: not one(page, "dialog").get_attribute("open"))


def test_a_click_does_not_move_the_page_behind_the_panel(page: Any) -> None:
    square = one(page, f"[data-cell='{CELL}'] a")
    bring_into_view(page, square)
    before = page.execute_script("return scrollY")
    square.click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    assert page.execute_script("return scrollY") == before


# -- Addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [CELL, "cell-synthetic_flash-cpu-float16-gradients"])
def test_without_a_script_the_address_of_a_square_leads_to_its_counterexample(
    browser: Any, address: str, cell: str
) -> None:
    """Also where its card is folded away, as the same finding in another dtype is: the browser unfolds it."""
    with without_script(browser):
        show(browser, f"{address}#{cell}")
        card = browser.find_element("css selector", ".card:has(:target)")
        assert card.is_displayed()
        assert cell.split("-")[1] in card.text
        assert (
            0
            <= card.rect["y"]
            - browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssVisualViewport"]["pageY"]
            < 900
        )


def test_the_address_of_a_square_that_holds_leads_to_it(browser: Any, address: str) -> None:
    cell = "cell-synthetic_eager-cpu-float64-attention"
    show(browser, f"{address}#{cell}")
    until(lambda: one(browser, "dialog").get_attribute("open"))
    assert "synthetic_eager: attention" in one(browser, "dialog").text
    assert "agrees_with_reference" in one(browser, "dialog").text
    press(browser, "ESCAPE")
    until(lambda: not one(browser, "dialog").get_attribute("open"))
    square = one(browser, f"[data-cell='{cell}']")
    assert browser.execute_script("return document.activeElement.parentElement === arguments[0]", square)
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", square)
    assert 0 <= top < 900


def test_a_square_of_a_single_family_opens_too(page: Any) -> None:
    one(page, "[data-cell='cell-synthetic_encoding-cpu-float64-positions'] a").click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    assert one(page, "dialog h3").text == "synthetic_encoding: positions"
    assert one(page, "dialog .where").text == "float64 on cpu"


# -- Filters in the newer sections --------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["scaling", "tradeoff", "accuracy", "memory"])
def test_filters_reach_every_section(page: Any, section: str) -> None:
    page.execute_script("for (const fold of document.querySelectorAll('main details')) fold.open = true")
    for selector in ("[data-implementation=synthetic_flash]", "[data-dtype=bfloat16]"):
        until(lambda selector=selector: shown(page, f"#{section} {selector}"))
    page.execute_script("scrollTo(0, 0)")
    one(page, ".filters > summary").click()
    until(lambda: one(page, ".filters form").is_displayed())
    one(page, ".filters input[value=synthetic_flash]").click()
    one(page, ".filters input[value=bfloat16]").click()
    until(lambda: not shown(page, f"#{section} [data-implementation=synthetic_flash]"))
    assert not shown(page, f"#{section} [data-dtype=bfloat16]")
    assert shown(page, f"#{section} [data-implementation=synthetic_eager]")


# -- Other readers' settings --------------------------------------------------------------------------------


def test_nothing_moves_by_itself(page: Any) -> None:
    """No transition and no animation anywhere: whoever asks for reduced motion gets what everybody gets."""
    moving = page.execute_script("""return [...document.querySelectorAll('*')].filter((e) => {
      const style = getComputedStyle(e);
      return style.animationName !== 'none' || style.transitionDuration.split(',').some((d) => parseFloat(d) > 0)
        || style.scrollBehavior === 'smooth';
    }).map((e) => e.outerHTML.slice(0, 60))""")
    assert moving == []


def test_on_paper_everything_is_there_and_no_control_is(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not shown(page, ".contents, .filters, .copy, .tablist, .skip")
    assert len(shown(page, "#speed .tab")) == 2
    assert len(shown(page, "#speed .tab > h3")) == 2
    rows = page.find_elements("css selector", "#laws tbody tr")
    assert rows
    assert all(row.rect["height"] > 0 for row in rows)  # the folds are open
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_what_a_finger_presses_is_large_enough(page: Any, address: str) -> None:
    """WCAG 2.2, 2.5.8: 24 by 24 pixels, but for links within a sentence."""
    show(page, address, width=390, height=844, phone=True)
    small = page.execute_script("""return [...document.querySelectorAll('.matrix a, button, summary, .contents a')]
      .map((e) => [e, e.getBoundingClientRect()]).filter(([e, box]) => box.width && Math.min(box.width, box.height) < 24)
      .map(([e]) => e.outerHTML.slice(0, 60))""")
    assert small == []
