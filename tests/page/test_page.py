"""Tests of the page in a real browser: a digit is dropped, drawn and explained, networks compared, files refused."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from engines.published.manifest import Accuracy
from engines.published.store import PublishedModel
from service.context import ServerContext
from tests.page.conftest import ThreadedServer, Visit, served
from tests.service.stubs import StubEngine, put
from tests.serving import ROOT

DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
TRANSFER = """bytes => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "digit.png", { type: "image/png" }));
    return transfer;
}"""


def only(page: Page, *tags: str) -> None:
    """Choose the networks of these tags."""
    expect(page.locator(".chip").first).to_be_visible()
    for chip in page.locator(".chip").all():
        chip.locator("input").set_checked(chip.get_attribute("title") in tags)


def choose(page: Page, content: bytes, name: str = "digit.png") -> None:
    """Choose a file as the picture."""
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})


class Int8Engine(StubEngine):
    """Engine in INT8."""

    precision = "int8"


def test_a_dropped_digit_is_read_and_explained(visit: Visit, server: httpx.Client, lenet5: PublishedModel) -> None:
    label = server.post("/classify?model=lenet5", content=DIGIT).json()["predictions"][0]["label"]
    page = visit(f"{server.base_url}/")
    only(page, lenet5.manifest.tag)
    page.dispatch_event("#stage", "drop", {"dataTransfer": page.evaluate_handle(TRANSFER, list(DIGIT))})
    expect(page.locator("#verdict")).to_contain_text(f"lenet5 says {label}.")
    expect(page.locator(".answer .bar")).to_have_count(5)
    page.locator(".answer .bar").first.click()
    expect(page.locator(".why canvas")).to_have_attribute(
        "aria-label", re.compile(f"Most of what speaks for {label} lies .*")
    )
    expect(page.locator(".why figcaption")).to_contain_text("50 images were run")


def test_a_drawn_digit_is_read(visit: Visit, server: httpx.Client, lenet5: PublishedModel) -> None:
    page = visit(f"{server.base_url}/")
    only(page, lenet5.manifest.tag)
    # No page has it without HTTPS, except from this machine.
    page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
    page.click("#draw")
    box = page.locator("#pad").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(x, y + 60)
    page.mouse.down()
    page.mouse.move(x, y + 220, steps=8)
    page.mouse.up()
    expect(page.locator("#verdict")).to_contain_text("lenet5 says 1.")
    page.click("#clear")
    page.click("#draw")
    expect(page.locator("#pad")).to_be_hidden()


def test_garbage_and_a_large_file_are_refused_in_words(
    visit: Visit, server: httpx.Client, lenet5: PublishedModel, tmp_path: Path
) -> None:
    page = visit(f"{server.base_url}/")
    only(page, lenet5.manifest.tag)
    choose(page, b"\0" + os.urandom(1000), "garbage.bin")
    expect(page.locator("#verdict")).to_contain_text("This file is not a picture that the server reads.")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(20_000_000))
    page.set_input_files("#file", large)
    expect(page.locator("#verdict")).to_contain_text("This file is too large.")
    choose(page, DIGIT)
    expect(page.locator("#verdict")).to_contain_text("lenet5 says")


def test_three_networks_are_compared(visit: Visit, stubs: ThreadedServer, three: list[str]) -> None:
    page = visit(stubs.address)
    only(page, *three[:3])
    choose(page, DIGIT)
    expect(page.locator(".answer")).to_have_count(3)
    expect(page.locator("#verdict")).to_contain_text("They disagree: lenet5, lenet5 say 1; lenet5 says 0.")
    only(page, *three[1:3])
    expect(page.locator("#verdict")).to_contain_text("All 2 say 1.")
    only(page, *three[2:])
    expect(page.locator("#verdict")).to_have_text(re.compile(r"kuzushiji lenet5 says \d\.mnist5k lenet5 says 1\."))


def test_an_answer_has_the_accuracy_in_the_engines_precision(
    visit: Visit, stubs: ThreadedServer, stub_server: ServerContext, three: list[str]
) -> None:
    model = stub_server.catalog.models[three[0]]
    accuracy = {precision: Accuracy(top1=top1, images=1000) for precision, top1 in (("fp32", 0.978), ("int8", 0.9))}
    manifest = model.manifest.model_copy(update={"accuracy": accuracy})
    model.published = replace(model.published, manifest=manifest)
    put(stub_server, three[0], Int8Engine())
    page = visit(stubs.address)
    only(page, three[0])
    choose(page, DIGIT)
    expect(page.locator(".answer h3")).to_contain_text("top-1 90.0 % measured")


def test_an_answer_of_imagenet_has_superclasses(visit: Visit, imagenet_server: ServerContext, imagenet: str) -> None:
    with served(imagenet_server) as threaded:
        page = visit(threaded.address)
        only(page, imagenet)
        choose(page, DIGIT)
        expect(page.locator(".bar .label").first).to_have_text("label 281 cat")
        expect(page.locator(".answer")).to_contain_text(re.compile(r"By superclass: cat \d\d\.\d %, dog \d\d\.\d %, "))


def test_a_time_limit_chooses_and_refuses(visit: Visit, stubs: ThreadedServer) -> None:
    page = visit(stubs.address)
    page.get_by_text("the most accurate one within a time limit").click()
    page.select_option("#dataset", "mnist5k")
    choose(page, DIGIT)
    expect(page.locator("#verdict")).to_contain_text("Chosen as the most accurate, 90.0%")
    page.select_option("#accuracy", "here mnist5k")
    page.select_option("#cost", "ms")
    expect(page.locator("#plot .point")).to_have_count(3)
    expect(page.locator("#plot .point.lit")).to_have_count(1)
    expect(page.locator("#plot .limit")).to_have_count(1)
    page.locator("#budget").fill("0")
    expect(page.locator("#verdict")).to_contain_text("No network fits the limit.")


def test_an_overloaded_network_says_when_to_ask_again(
    visit: Visit, stubs: ThreadedServer, three: list[str], stub_server: ServerContext
) -> None:
    put(stub_server, three[2], StubEngine(1), 1.0).decoding = 20
    page = visit(stubs.address)
    only(page, three[2])
    choose(page, DIGIT)
    expect(page.locator("#verdict")).to_contain_text("The server is busy.")
    expect(page.locator("#verdict")).to_contain_text(re.compile(r"Try again in \d+ s\."))
