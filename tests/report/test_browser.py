"""The page in a real browser: no errors, no requests, tables that sort, charts that answer to pointer and keys."""

import shutil

import pytest

from hydraprune.report import write_page
from report.folders import write_study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_study(folder / "study", range(2))
    write_page([folder / "study"], folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, file):
    """Opens the page; afterwards it must have asked for nothing and complained of nothing."""
    seen, contexts = {"requests": [], "complaints": []}, []

    def call(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on("console", lambda message: seen["complaints"].append(message.text))
        page.on("pageerror", lambda error: seen["complaints"].append(str(error)))
        page.goto(file.as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert {url for url in seen["requests"] if not url.startswith("data:")} == {file.as_uri()}
    assert seen["complaints"] == []


def column(page, number):
    return page.eval_on_selector_all(
        f"#results tbody tr > :nth-child({number})", "cells => cells.map(c => c.innerText)"
    )


def test_tables_sort_with_pointer_and_keyboard(open_page):
    page = open_page()
    heads = page.locator("#results thead th")
    sparsity = heads.filter(has_text="sparsity").locator("button")
    before = column(page, 1)
    sparsity.click()
    assert column(page, 2) == ["90.0", "90.0", "50.0", "50.0", "0.0"]
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    sparsity.focus()
    page.keyboard.press("Enter")
    assert column(page, 2) == ["0.0", "50.0", "50.0", "90.0", "90.0"]
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    heads.nth(0).locator("button").click()
    assert column(page, 1) == sorted(before)
    assert heads.nth(1).get_attribute("aria-sort") is None


def test_charts_are_drawn_inside_their_frames_and_tell_their_values(open_page):
    page = open_page()
    outside = """charts => charts.filter(chart => {
        const frame = chart.getBoundingClientRect();
        return [...chart.querySelectorAll("path, use, text")].some(mark => {
            const at = mark.getBoundingClientRect();
            return at.left < frame.left - 1 || at.right > frame.right + 1 || at.top < frame.top - 1;
        });
    }).map(chart => chart.getAttribute("aria-label"))"""
    assert page.eval_on_selector_all(".plot svg", outside) == []
    assert page.locator(".plot svg").count() > 10
    assert page.locator(".plot svg .line").count() > 20
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#sparsity .plot use").first.hover(force=True)
    assert tip.inner_text() == "hydra 50 %, pgd-50x10: 50.5 ± 0.7 % (seeds 50.0, 51.0; 80 images)"
    page.locator("h1").hover()
    assert tip.is_hidden()
    page.locator("#results td[data-value]").nth(1).hover()
    assert tip.inner_text() == "of 360"


def test_every_control_can_be_reached_and_used_by_keyboard(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    controls = "nav a, #theme, th button, summary, .plot svg, .scroll, .gallery, pre"
    out_of_reach = "all => all.filter(each => each.tabIndex !== 0).length"
    assert page.locator(controls).count() > 60
    assert page.eval_on_selector_all(controls, out_of_reach) == 0
    chart = page.locator("#sparsity .plot svg").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("hydra 50 %, pgd-50x10: 50.5")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("hydra 90 %, pgd-50x10: 18.5")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    folded = page.locator("#runs details").first
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert "name: methods/" in folded.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_themes(open_page, scheme):
    """Contrast of 4.5 to 1 for text, as WCAG asks; also after a click on the button that changes the theme."""
    page = open_page(scheme=scheme)
    for _ in range(2):
        assert min(page.evaluate(CONTRASTS)) > 4.5
        page.locator("#theme").click()


CONTRASTS = """() => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = color => {
        paint.fillStyle = color;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data];
    };
    const light = color => rgb(color).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (color !== "rgba(0, 0, 0, 0)") return color;
        }
    };
    return [...document.querySelectorAll("h1, h2, h3, p, td, th, a, summary, .what, .more, figcaption, li")]
        .filter(element => element.offsetParent && element.innerText)
        .map(element => {
            const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        });
}"""


def test_a_phone_scrolls_down_only(open_page):
    page = open_page(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_print_unfolds_everything_and_leaves_the_controls_out(open_page):
    page = open_page()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.eval_on_selector_all("details", "all => all.every(each => each.open)")
    assert page.locator("nav").is_hidden()
    assert len(page.pdf(format="A4")) > 10_000
