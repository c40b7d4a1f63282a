"""The page of a plan in a real browser: desktop and phone, light and dark, by numbers and by pixels."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from edgeopt.profiles import load_problem
from edgeopt.questions.frontier import frontier
from edgeopt.report.page import page_text
from tests.edgeopt.report.examples import DATE, hostile_plan, image_plan, language_plan, run_of

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SCREENSHOTS = Path(__file__).resolve().parents[3] / "build" / "screenshots"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, headless=True, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Return plan, report and page by name; the phone has to show long names, too."""
    folder = tmp_path_factory.mktemp("pages")
    words, images, hostile = language_plan(), image_plan(), hostile_plan()
    line = frontier(load_problem("demo-diffusion"), ("latency", "quality"), most_points=5)
    made = {
        "words": (words, run_of(words, rounds=12), None),
        "images": (images, run_of(images), line),
        "hostile": (hostile, None, None),
    }
    pages = {}
    for name, (plan, report, points) in made.items():
        path = folder / f"{name}.html"
        path.write_text(page_text(plan, report, points, date=DATE), encoding="utf-8")
        pages[name] = (plan, report, path)
    return pages


CASES = [(name, width, scheme) for name in ("words", "images") for width in WIDTHS for scheme in ("light", "dark")]


@pytest.fixture(params=[*CASES, ("hostile", "phone", "light")], ids="-".join)
def opened(request, browser, subjects):
    """Open a page; whatever it logs or asks for is held against it when the test is over."""
    name, device, scheme = request.param
    plan, report, path = subjects[name]
    width, height = WIDTHS[device]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(path.as_uri())
    yield plan, report, page, "-".join(request.param)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []
    context.close()


BARS = """() => [...document.querySelectorAll('#chart-timeline svg [data-kind]')]
  .filter(bar => bar.getBoundingClientRect().width > 0 || bar.closest('svg').getBoundingClientRect().width > 0)
  .map(bar => { const box = bar.querySelector('path').getBBox();
    return {...bar.dataset, left: box.x, right: box.x + box.width, top: box.y}; })"""
TICKS = """() => [...document.querySelectorAll('#chart-timeline svg')]
  .filter(svg => svg.getBoundingClientRect().width > 0)
  .flatMap(svg => [...svg.querySelectorAll('[id*="xtick_"]')])
  .map(tick => { const box = tick.querySelector('text').getBoundingClientRect();
    const frame = tick.closest('svg'); const scale = frame.viewBox.baseVal.width / frame.getBoundingClientRect().width;
    return [Number(tick.textContent.trim()),
            scale * (box.x + box.width / 2 - frame.getBoundingClientRect().x)]; })"""


def test_a_page_holds_what_it_promises(opened):
    plan, report, page, name = opened
    _shoot(page, name)
    stages = page.locator("#where table").first.locator("tbody tr")
    assert [row.split("\t")[:2] for row in stages.all_inner_texts()] == [
        [str(stage.index), stage.device] for stage in plan.stages
    ]
    graph = page.locator("#chart-graph svg:visible")
    hosts = {
        circle.get_attribute("data-device"): circle.get_attribute("data-stages").split()
        for circle in graph.locator("[data-device]").all()
    }
    assert hosts.keys() == {device.name for device in plan.problem.devices}
    assert all(str(stage.index) in hosts[stage.device] for stage in plan.stages)
    _check_bars(plan, report, page)
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


def _shoot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    target = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=target, full_page=True)
    print(f"screenshot: {target}")


def _check_bars(plan, report, page):
    """Bars carry the numbers of plan and report, and their edges lie where the axis says that these numbers are."""
    bars = page.evaluate(BARS)
    assert bars
    ticks = page.evaluate(TICKS)
    (low, at_low), (high, at_high) = ticks[0], ticks[-1]
    until_s = max(one.stop_s for one in plan.timeline + (report.timeline if report else []))
    shown_s = max(float(bar["stop"]) for bar in bars)
    factor = 1.0 if high < 2 * shown_s else 1e3  # the axis is in seconds or in milliseconds
    per_unit = (at_high - at_low) / (high - low)
    for bar in bars:
        assert bar["left"] == pytest.approx(at_low + per_unit * (factor * float(bar["start"]) - low), abs=1.0)
        assert bar["right"] == pytest.approx(at_low + per_unit * (factor * float(bar["stop"]) - low), abs=1.0)
    for kind, timeline in (("predicted", plan.timeline), ("measured", report.timeline if report else [])):
        drawn = sorted((b["lane"], b["label"], float(b["start"]), float(b["stop"])) for b in bars if b["kind"] == kind)
        wanted = sorted((one.lane, one.label, one.start_s, one.stop_s) for one in timeline)
        if len(drawn) == len(wanted):
            assert drawn == wanted
        else:  # the beginning is drawn; the rest is on a chart of its own
            assert kind == "measured"
            assert set(drawn) < set(wanted)
            lanes = page.locator("#chart-whole svg:visible [data-lane]").all()
            assert sum(int(lane.get_attribute("data-bars")) for lane in lanes) == len(wanted)
    if len(bars) == len(plan.timeline) + len(report.timeline if report else []):
        assert math.isclose(shown_s, until_s)


def test_the_keyboard_reaches_everything(browser, subjects):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(subjects["words"][2].as_uri())
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "the focused link is on the screen"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('section')?.id ?? ''"))
    assert {"where", "when", "time", "proof", "sources", "machine"} <= reached
    first = page.locator("#sources summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#sources details").first.get_attribute("open") is not None
    page.close()
