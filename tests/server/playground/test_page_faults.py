"""The page when things go wrong, and when somebody means it ill."""

import time
from typing import Any

import pytest

from simpleseg_server.engines.scripted import Reply

from .conftest import ROOT

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

MARKUP = """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>"""
RING = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9], [0.3, 0.8], [0.2, 0.7]]]."
SLOW = Reply(RING, token_length=2, delay_s=0.15)
REFUSED = "Failed to load resource"


def test_markup_stays_text(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    engine.default = Reply(MARKUP)
    engine.replies = {"fine": Reply(RING)}
    with serve_on_socket(engine) as url, visit(url) as here:
        data = (ROOT / "examples/images/scene-04.png").read_bytes()
        name = f"{MARKUP}.png".replace("/", "\u2044")
        here.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
        expect(here.page.locator("#file-name")).to_contain_text("<img src=x onerror=")
        here.ask(f"fine {MARKUP}; {MARKUP}")
        here.settle()
        expect(here.page.locator(".object-name").first).to_have_text(f"fine {MARKUP}")
        here.page.locator(".object-head").first.click()
        expect(here.page.locator(".tag").first).to_contain_text(MARKUP)
        expect(here.page.locator(".object .status").nth(1)).to_have_text("No answer")
        here.page.click("#tab-raw")
        expect(here.page.locator("pre.raw").nth(1)).to_have_text(MARKUP)
        here.page.click("#tab-code")
        here.page.get_by_label("Python", exact=True).check()
        expect(here.page.locator("pre.code")).to_contain_text("onerror")
        file, svg = here.download(here.page.locator("[data-format=svg]").click)
        assert "/" not in file
        assert "<" not in file
        assert b"<script" not in svg
        assert here.page.evaluate("window.pwned") is None
        added = here.page.evaluate(
            "document.querySelectorAll('script:not([src]), img[onerror], [onclick]').length"
        )
        assert added == 0


def test_stopping_a_run_frees_the_engine(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    engine.default = SLOW
    with serve_on_socket(engine) as url, visit(url) as here:
        here.open_sample(2)
        here.ask("a")
        here.page.locator(".shape.drawing:not([data-vertices='0'])").wait_for()
        here.shot("2-streaming")
        here.page.click("#stop")
        expect(here.page.locator(".status")).to_have_text("Stopped")
        deadline = time.monotonic() + 20
        while not engine.cancelled and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(engine.cancelled) == 1
        here.ask("b")
        here.page.locator(".object").nth(1).wait_for()
        here.page.keyboard.press("Escape")
        expect(here.page.locator(".status").nth(1)).to_have_text("Stopped")


def test_an_image_that_the_server_forgot_is_sent_again(
    visit: Any, engine: Any, serve_on_socket: Any
) -> None:
    with serve_on_socket(engine) as url, visit(url, tolerated=(REFUSED,)) as here:
        here.open_sample(2)
        with here.page.expect_response(lambda r: r.url.endswith("/v1/images")) as coming:
            here.ask("a")
        here.settle()
        kept = coming.value.json()["id"]
        here.page.evaluate("(id) => fetch(`/v1/images/${id}`, { method: 'DELETE' })", kept)
        sent = here.requests("/segment")
        here.ask("b")
        expect(here.page.locator(".object[data-status=ok]")).to_have_count(2)
        here.settle()
        assert [one.response().status for one in sent] == [404, 200]
        here.ask("c")
        expect(here.page.locator(".object[data-status=ok]")).to_have_count(3)


def test_a_server_without_room_for_images_gets_the_file_each_time(
    visit: Any, engine: Any, serve_on_socket: Any
) -> None:
    with (
        serve_on_socket(engine, max_kept_image_bytes=1000) as url,
        visit(url, tolerated=(REFUSED,)) as here,
    ):
        here.open_sample(2)
        for count in (1, 2):
            here.ask("a")
            expect(here.page.locator(".object[data-status=ok]")).to_have_count(count)


def test_refusals_are_said_in_words(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    engine.replies = {"busy": Reply(RING, fault="busy"), "many": Reply("[]")}
    with serve_on_socket(engine, max_prompts=2) as url, visit(url, tolerated=(REFUSED,)) as here:
        here.page.click("#url-button")
        here.page.fill("#url-input", "http://127.0.0.1:1/a.png")
        here.page.press("#url-input", "Enter")
        expect(here.page.locator("#url-problem")).to_contain_text("does not fetch this address")
        here.page.fill("#url-input", "data:text/html,<b>")
        here.page.press("#url-input", "Enter")
        expect(here.page.locator("#url-problem")).to_contain_text("data:image/")
        here.page.keyboard.press("Escape")
        here.open_sample(2)
        here.ask("many; many; many")
        expect(here.page.locator("#alert")).to_contain_text("more phrases than the server takes")
        expect(here.page.locator("#alert")).to_contain_text("Request req_")
        expect(here.page.locator(".status").first).to_have_text("Failed")
        here.shot("7-refused")
        here.page.click("#clear")
        here.ask("busy")
        expect(here.page.locator("#alert")).to_contain_text("busy")
        here.ask("many")
        expect(here.page.locator("#alert")).to_be_empty()
        expect(here.page.locator(".status").last).to_have_text("Not there")


def test_a_file_that_is_no_image(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    with serve_on_socket(engine, max_image_bytes=1000) as url, visit(url) as here:
        for data, words in ((b"no image", "not an image"), (b"x" * 1001, "MiB")):
            file = {"name": "a.png", "mimeType": "image/png", "buffer": data}
            here.page.set_input_files("#file", file)
            expect(here.page.locator("#alert")).to_contain_text(words)
        expect(here.page.locator("#welcome")).to_be_visible()


def test_a_server_that_went_away(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    with serve_on_socket(engine) as url, visit(url, tolerated=(REFUSED,)) as here:
        here.open_sample(2)
        here.page.route("**/segment", lambda route: route.abort("connectionrefused"))
        here.ask("a")
        expect(here.page.locator("#alert")).to_contain_text("cannot be reached")
        here.page.unroute("**/segment")
        here.page.click("[data-action=again]")
        expect(here.page.locator(".status")).to_have_text("Found")


def test_an_engine_that_dies_while_it_writes(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    engine.default = Reply(RING, token_length=2, fault="death", fault_after=18)
    with serve_on_socket(engine) as url, visit(url) as here:
        here.open_sample(2)
        here.ask("a")
        expect(here.page.locator("#alert")).not_to_be_empty()
        here.settle()
        expect(here.page.locator(".status")).to_have_text("Failed")


def test_the_page_asks_for_a_key(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    with (
        serve_on_socket(engine, api_keys="secret-4711") as url,
        visit(url, tolerated=(REFUSED,)) as here,
    ):
        expect(here.page.locator("#key-button")).to_have_text("Enter API key")
        here.open_sample(2)
        here.ask("a")
        expect(here.page.locator("#key-dialog")).to_be_visible()
        here.page.fill("#key-input", "wrong")
        here.page.press("#key-input", "Enter")
        here.page.click("[data-action=again]")
        expect(here.page.locator("#alert")).to_contain_text("needs a valid API key")
        here.page.fill("#key-input", "secret-4711")
        here.page.press("#key-input", "Enter")
        expect(here.page.locator("#alert")).to_be_empty()
        here.page.click("[data-action=again]")
        expect(here.page.locator(".status")).to_have_text("Found")
        _, mask = here.download(here.page.locator("[data-format=mask]").click)
        assert mask.startswith(b"\x89PNG")
        stored = here.page.evaluate(
            "[JSON.stringify(localStorage), document.cookie, location.href]"
        )
        assert "4711" not in "".join(stored)
        here.page.reload()
        expect(here.page.locator("#key-button")).to_have_text("API key set")
        here.page.click("#key-button")
        here.page.click("#key-forget")
        assert here.page.evaluate("sessionStorage.length") == 0


def test_an_image_that_the_server_fetched_is_shown(
    visit: Any, engine: Any, serve_on_socket: Any
) -> None:
    """The server is told an address; what it keeps then comes back from it, since the page may load
    from nowhere else. The fetching itself is played here."""
    data = (ROOT / "examples/images/scene-04.png").read_bytes()
    address = "https://example.com/folder/pic%20ture.png"

    def fetched(route: Any) -> None:
        assert route.request.post_data_json == {"image": {"url": address}}
        files = {"image": {"name": "a.png", "mimeType": "image/png", "buffer": data}}
        route.fulfill(response=here.page.request.post(f"{url}/v1/images", multipart=files))

    with serve_on_socket(engine) as url, visit(url) as here:
        here.page.route("**/v1/images", fetched)
        here.page.click("#url-button")
        here.page.fill("#url-input", address)
        here.page.press("#url-input", "Enter")
        expect(here.page.locator("#file-name")).to_have_text("pic ture.png  512 × 512")
        here.ask("a")
        expect(here.page.locator(".status")).to_have_text("Found")
        here.page.click("#tab-code")
        expect(here.page.locator("pre.code")).to_contain_text(address)
