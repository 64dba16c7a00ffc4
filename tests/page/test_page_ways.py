"""Tests of the ways in which the page is used: by keyboard, on a phone, in the dark, with a key, without a server."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from service.context import make_context
from service.settings import Settings
from tests.page.conftest import ThreadedServer, Visit, served
from tests.service.stubs import StubEngine, put

pytestmark = pytest.mark.slow


def ask(page: Page) -> None:
    """Ask about the sample digit, and wait for an answer."""
    page.get_by_role("button", name="A digit").click()
    expect(page.locator(".answer").first).to_be_visible()


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element of the selector has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_all_of_it_goes_by_keyboard(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    expect(page.locator(".chip")).to_have_count(4)
    tab_to(page, ".skip")
    page.keyboard.press("Enter")
    tab_to(page, ".sample")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").first).to_be_visible()
    tab_to(page, ".bar")
    page.keyboard.press("Enter")
    expect(page.locator(".why canvas").first).to_be_visible()
    assert page.evaluate("document.activeElement.matches('.bar')")
    tab_to(page, ".point")
    page.keyboard.press("ArrowRight")
    name = page.evaluate("document.activeElement.dataset.name")
    page.keyboard.press("Enter")
    expect(page.locator("#card-body h3")).to_have_text(name)
    expect(page.locator("#card-body .layers svg")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "card"
    tab_to(page, "#depth")
    before = page.locator("output.readout").text_content()
    page.keyboard.press("ArrowRight")
    expect(page.locator("output.readout")).not_to_have_text(str(before))


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_it_fits_a_phone_and_axe_finds_nothing(visit: Visit, stubs: ThreadedServer, width: int, colours: str) -> None:
    # axe is a script of the test's, which the page's policy would refuse.
    page = visit(stubs.address, viewport={"width": width, "height": 740}, color_scheme=colours, bypass_csp=True)
    expect(page.locator(".chip")).to_have_count(4)
    ask(page)
    page.locator(".bar").first.click()
    expect(page.locator(".why canvas").first).to_be_visible()
    expect(page.locator("#card-body .layers svg")).to_be_visible()
    for details in page.locator("details").all():
        details.locator("summary").click()
    expect(page.locator("#live-body table").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 22, 27)"}[colours]


def test_a_server_that_goes_away_is_told_and_comes_back(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    expect(page.locator(".chip")).to_have_count(4)
    stubs.stop()
    page.get_by_role("button", name="Draw").click()
    page.locator("#pad").click()
    expect(page.locator("#banner")).to_contain_text("The server does not answer.")
    stubs.start()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator(".answer").first).to_be_visible()


def test_a_server_with_a_key_asks_for_the_key(visit: Visit, three: list[str]) -> None:
    server = make_context(Settings.model_validate({"api_keys": ["right"]}))
    put(server, three[0], StubEngine())
    with served(server) as threaded:
        page = visit(threaded.address)
        expect(page.locator("#banner")).to_contain_text("This server needs an API key.")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#banner")).to_contain_text("not among the server's")
        page.fill("#key", "right")
        page.keyboard.press("Enter")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator(".chip")).to_have_count(4)
        kept = page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
        assert kept == [1, 0, ""]


def test_without_a_published_network_the_page_has_the_command(visit: Visit, three: list[str]) -> None:
    server = make_context(Settings())
    server.catalog.models = {}
    with served(server) as threaded:
        page = visit(threaded.address)
        expect(page.locator("#banner")).to_contain_text("No network is published yet.")
        expect(page.locator("#banner pre")).to_contain_text("python -m training lenet5 --data mnist5k")
        expect(page.locator("#card-body h3")).to_have_text("vgg16")  # cards need no weights
        expect(page.locator("#plot .point").first).to_be_visible()


def test_each_key_that_is_tried_adds_no_look_at_the_models(visit: Visit, three: list[str]) -> None:
    server = make_context(Settings())
    server.catalog.models = {}
    with served(server) as threaded:
        page = visit(threaded.address)
        page.clock.install()
        page.reload()
        expect(page.locator("#banner")).to_contain_text("No network is published yet.")
        page.evaluate("document.querySelector('#key-form').hidden = false")
        for word in ("one", "two", "three"):
            page.fill("#key", word)
            with page.expect_response("**/models?"):
                page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        looks: list[str] = []
        page.on("request", lambda request: looks.append(request.url))
        page.clock.fast_forward(16_000)
        page.wait_for_timeout(500)
        assert len([url for url in looks if url.endswith("/models?")]) == 1


def test_a_proxys_page_in_place_of_an_answer_is_told(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    page.route("**/models?", lambda route: route.fulfill(content_type="text/html", body="<h1>Sign in</h1>"))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("The server does not answer.")


def test_vgg16s_picture_says_where_memory_and_parameters_are(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(f"{stubs.address}#card/vgg16")
    expect(page.locator("#card-body h3")).to_have_text("vgg16")
    expect(page.locator("#card-title")).to_be_in_viewport()
    glance = page.locator(".glance li")
    expect(glance.nth(0)).to_have_text("Parameters: 89 % in the linear layers; most, 74 %, in classifier.0.")
    expect(glance.nth(2)).to_contain_text("in the first third of the layers")


def test_the_last_minute_is_live(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    expect(page.locator(".chip")).to_have_count(4)
    page.locator("#live-details summary").click()
    expect(page.locator("#live-body")).to_contain_text("images a second")
    ask(page)
    expect(page.locator("#live-body")).to_contain_text("inference")
    expect(page.locator("#live-body .facts dd").first).not_to_contain_text("0.0")


def test_a_proxy_that_keeps_the_metrics_to_operators_is_in_words(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    page.route("**/metrics*", lambda route: route.fulfill(status=403, content_type="text/html", body="<h1>403</h1>"))
    page.locator("#live-details summary").click()
    expect(page.locator("#live-body")).to_have_text("This is for the server's operators. Status 403.")
