"""The dashboard in a real browser: it shows models and figures, and its playground gets answers.

Needs a Chromium: FERRY_CHROMIUM, or `chromium`, `chromium-browser` or `google-chrome` on the path. Debian:
`apt-get install chromium`. Without one these tests are skipped, and say so."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, text_input
from playwright.sync_api import expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No lookups of its own: the tests may run where there is no network.
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Time only bounds how long a failure takes.
expect.set_options(timeout=60_000)
SHOTS = ROOT / "target" / "dashboard"


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("FERRY_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"SKIPPED: no browser; looked for FERRY_CHROMIUM and {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1500})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # A refused request is told on the console too, and is the server's business.
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" and "Failed to load resource" not in message.text else None)
    page.goto(f"{os.environ['FERRY_HTTP']}/dashboard/")
    yield page
    page.close()
    assert not faults, faults


def shoot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def test_the_page_shows_every_model_with_its_state(page):
    row = page.locator("#models tbody tr", has_text="minilm").first
    expect(row).to_contain_text("ready")
    expect(row).to_contain_text("100 %")
    expect(page.locator("#health")).to_have_text("ready")


def test_traffic_is_drawn_as_it_comes(page, client):
    page.select_option("#model", "minilm")
    # Two readings make the first point; then some traffic, seen by a later one.
    expect(page.locator("#throughput path")).to_have_count(1)
    for _ in range(20):
        client.infer("minilm", [text_input(["a boat", "a train"])])
    for chart in ("#batch", "#queue"):
        # Beside the first and the last filled bucket stands an empty one.
        filled = page.locator(f"{chart} rect:not([height='0'])")
        expect(filled.first).to_be_visible()
    shoot(page, "live")


def test_the_playground_embeds(page):
    page.select_option("#model", "minilm")
    page.click("#playground button")
    meters = page.locator("#answer .meter")
    expect(meters).to_have_count(3)
    alike, other = (float(meters.nth(at).locator("span").last.text_content()) for at in (1, 2))
    assert alike > 0.5 > other, (alike, other)
    shoot(page, "embed")


@pytest.mark.parametrize("model", ["tiny-bert-classify", "tiny-bert-rerank", "tiny-bert-tokens"])
def test_the_playground_has_a_form_for_each_task(page, model):
    page.select_option("#model", model)
    page.click("#playground button")
    expect(page.locator("#answer small").last).to_contain_text("µs in all")
    expect(page.locator("#answer .error")).to_have_count(0)


def test_the_playground_streams_a_generation(page):
    page.select_option("#model", "tiny-llama")
    page.uncheck("input[name=chat]")
    page.fill("input[name=max_tokens]", "8")
    page.click("#playground button")
    expect(page.locator("#answer small")).to_contain_text("8 tokens in")
    expect(page.locator("#blocks rect:not([width='0'])").first).to_be_visible()


def test_an_error_is_shown_as_the_server_says_it(page):
    page.select_option("#model", "tiny-llama")
    page.uncheck("input[name=chat]")
    page.fill("textarea[name=prompt]", "word " * 400)
    with page.expect_response(lambda response: response.status == 400):
        page.click("#playground button")
    expect(page.locator("#answer .error")).to_contain_text("allowed")
