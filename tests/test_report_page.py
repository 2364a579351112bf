"""The report in a real browser: it draws, asks nobody for anything, answers to mouse, keys and small screens.

Debian's chromium and chromedriver, driven by selenium; without them these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from qkverify import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NEEDED = {"selenium": find_spec("selenium"), "chromium": CHROMIUM, "chromedriver": DRIVER}
LACKING = [name for name, found in NEEDED.items() if not found]
pytestmark = pytest.mark.skipif(
    bool(LACKING),
    reason=f"needs {', '.join(LACKING)} (pip install selenium; apt install chromium chromium-driver)",
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
    """The page over the synthetic records, as a file's address."""
    spec = spec_from_file_location("synthetic_results", Path(__file__).with_name("synthetic_results.py"))
    assert spec
    assert spec.loader
    synthetic = module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(report.render(synthetic.records()).html, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The browser with the page freshly opened on a desktop, in light; whatever a test sets is undone."""
    show(browser, address)
    yield browser
    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        browser.execute_cdp_cmd(command, {})


def show(
    browser: Any, address: str, *, scheme: str = "light", width: int = 1400, phone: bool = False
) -> None:
    browser.get("about:blank")  # else an address that differs in its fragment only is no new page
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)


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


def test_nothing_is_requested_and_nothing_complains(browser: Any, address: str) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what came before
    show(browser, address + "#" + CELL)
    until(lambda: one(browser, "dialog").get_attribute("open"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [
        s["request"]["url"] for s in sent if not s["documentURL"].startswith("chrome")
    ]  # the browser's own pages load too
    assert {url for url in asked if not url.startswith(("data:", "about:"))} == {address}
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
    assert one(page, "h1").text.endswith("2 of 7 implementations break a law")
    bottom = page.execute_script("return document.querySelector('.matrix tbody').getBoundingClientRect().top")
    assert bottom < 700


def test_a_click_on_a_square_opens_its_laws_and_counterexample(page: Any) -> None:
    one(page, f"[id='{CELL}'] a").click()
    until(lambda: one(page, "dialog").get_attribute("open"))
    panel = one(page, "dialog")
    assert "synthetic_broken: masking" in panel.text
    assert "causal looks aligned top-left" in panel.text
    assert "qkverify replay 7f3a" in panel.text
    assert len(shown(page, "dialog tbody tr")) == 6
    assert page.current_url.endswith("#" + CELL)


def test_the_keyboard_opens_a_square_and_escape_returns_to_it(page: Any) -> None:
    page.execute_script(f"document.querySelector(\"[id='{CELL}'] a\").focus()")
    press(page, "ENTER")
    until(lambda: one(page, "dialog").get_attribute("open"))
    press(page, "ESCAPE")
    until(lambda: not one(page, "dialog").get_attribute("open"))
    assert page.execute_script("return document.activeElement.parentElement.id") == CELL
    assert "#" not in page.current_url


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
    page.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page: Any, address: str, scheme: str) -> None:
    show(page, address, scheme=scheme)
    page.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(252, 251, 248)" if scheme == "light" else "rgb(20, 22, 26)"
    )
    assert page.execute_script(CONTRAST, LEGIBLE, LARGE) == []


def test_without_a_script_everything_that_matters_is_there(browser: Any, address: str) -> None:
    with contextlib.ExitStack() as stack:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        stack.callback(browser.execute_cdp_cmd, "Emulation.setScriptExecutionDisabled", {"value": False})
        show(browser, address)
        text = one(browser, "body").text
    assert "2 of 7 implementations break a law" in text
    assert "causal looks aligned top-left" in text
    assert "synthetic-gpt2" in text
    assert "bfloat16" in text
