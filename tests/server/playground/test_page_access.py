"""The page without a mouse, without eyes, in the dark and on a telephone."""

from typing import Any

import pytest

from simpleseg_server.engines.scripted import Reply

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
RING = "[[[0.2, 0.2], [0.6, 0.2], [0.6, 0.7], [0.2, 0.7]]]."


def focused(here: Any) -> str:
    """The id or the text of what has the focus."""
    found: str = here.page.evaluate(
        "document.activeElement.id || document.activeElement.textContent.trim()"
    )
    return found


def tab_to(here: Any, goal: str, key: str = "Tab") -> list[str]:
    """Press Tab until ``goal`` has the focus; what had it on the way."""
    way: list[str] = []
    while len(way) < 40:
        here.page.keyboard.press(key)
        way.append(focused(here))
        if way[-1] == goal:
            return way
    raise AssertionError(f"{goal} is not reached: {way}")


def test_everything_by_keyboard(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    engine.default = Reply(RING)
    with serve_on_socket(engine) as url, visit(url) as here:
        page = here.page
        asked = here.requests("/segment")
        tab_to(here, "A hexagon")
        page.keyboard.press("Enter")
        page.locator("#canvas").wait_for()
        expect(page.locator("#phrase")).to_be_focused()
        page.keyboard.type("the hexagon")
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_contain_text("the hexagon: found")
        # A vertex, by the arrows.
        tab_to(here, "canvas", "Shift+Tab")
        page.keyboard.press("Tab")
        label = "document.activeElement.getAttribute('aria-label')"
        assert page.evaluate(label) == "Vertex 1 of 4: 102, 102"
        outline = page.evaluate("getComputedStyle(document.activeElement.children[0]).stroke")
        assert outline == "rgb(0, 0, 0)", "the focus cannot be seen"
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("ArrowDown")
        assert page.evaluate(label) == "Vertex 1 of 4: 92, 103"
        page.keyboard.press("PageDown")
        assert page.evaluate(label).startswith("Vertex 2 of 4")
        page.keyboard.press("Insert")
        assert page.evaluate(label).startswith("Vertex 2 of 5")
        page.keyboard.press("Delete")
        page.keyboard.press("Delete")
        page.keyboard.press("Delete")
        expect(page.locator("#live")).to_have_text("An outline keeps at least three vertices.")
        for _ in range(3):
            page.keyboard.press("Control+z")
        assert page.evaluate(label).endswith("of 4: 307, 102")
        page.keyboard.press("Escape")
        expect(page.locator("#canvas")).to_be_focused()
        # A point and a box, by the crosshair.
        page.keyboard.press("p")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        expect(page.locator(".object[data-status=ok]")).to_have_count(2)
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        here.shot("8-crosshair")
        page.keyboard.press("Enter")
        expect(page.locator(".object[data-status=ok]")).to_have_count(3)
        assert asked[1].post_data_json["prompts"] == [{"point": [0.4, 0.49]}]
        assert asked[2].post_data_json["prompts"] == [{"box": [0.4, 0.49, 0.5, 0.59]}]
        page.keyboard.press("Escape")
        expect(page.get_by_label("Select", exact=True)).to_be_checked()
        # The panel.
        tab_to(here, "Ask again")
        tab_to(here, "tab-timing")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#pane-code")).to_be_visible()
        assert focused(here) == "tab-code"


def test_the_order_of_the_focus(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    with serve_on_socket(engine) as url, visit(url) as here:
        way = tab_to(here, "A hexagon")
        assert way[0] == "Skip to the phrase field"
        expected = ["choose", "camera-button", "url-button", "Circle, crescent and triangle"]
        at = [way.index(name) for name in expected]
        assert at == sorted(at)
        for _ in way:
            seen = here.page.evaluate(
                "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
            )
            assert seen, focused(here)
            here.page.keyboard.press("Shift+Tab")


def violations(here: Any) -> list[str]:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(here.page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desk", "phone"])
def test_axe_finds_nothing(
    visit: Any, engine: Any, serve_on_socket: Any, scheme: str, device: str
) -> None:
    """Every state of the page: empty, dialogs, results of all kinds, each tab, a refusal."""
    engine.replies = {"square": Reply(RING), "absent": Reply("[]"), "odd": Reply("what?")}
    options = PHONE if device == "phone" else {}
    tolerated = ("Failed to load resource",)
    with (
        serve_on_socket(engine, max_prompts=4) as url,
        visit(url, color_scheme=scheme, tolerated=tolerated, **options) as here,
    ):
        assert violations(here) == []
        here.page.click("#url-button")
        assert violations(here) == []
        here.page.keyboard.press("Escape")
        here.open_sample(0)
        here.ask("a; b; c; d; e")
        here.page.locator("#alert p").first.wait_for()
        here.ask("square; absent; odd")
        here.settle()
        here.page.locator(".object-head").nth(5).click()
        for tab in ("#tab-timing", "#tab-code", "#tab-raw"):
            here.page.click(tab)
            assert violations(here) == []


def lightness(here: Any) -> float:
    channels: list[int] = here.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    )
    return sum(channels) / 3


def test_dark_and_light(visit: Any, engine: Any, serve_on_socket: Any) -> None:
    with serve_on_socket(engine) as url, visit(url, color_scheme="dark") as here:
        assert lightness(here) < 60
        here.page.click("#theme-button")
        expect(here.page.locator("#theme-button")).to_have_attribute("aria-label", "Colours: light")
        assert lightness(here) > 200
        here.page.reload()
        assert lightness(here) > 200
        here.page.click("#theme-button")
        assert lightness(here) < 60
        here.page.emulate_media(color_scheme="light")
        assert lightness(here) < 60
        here.page.click("#theme-button")
        assert lightness(here) > 200


def test_a_telephone(visit: Any, demo_url: str) -> None:
    with visit(demo_url, **PHONE) as here:
        page = here.page
        here.shot("9-phone-empty")

        def is_narrow() -> bool:
            return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

        assert is_narrow()
        page.locator("#samples button").first.tap()
        page.locator("#suggestions button").last.tap()
        expect(page.locator(".object[data-status=ok]")).to_have_count(3)
        here.settle()
        assert is_narrow()
        page.evaluate("scrollTo(0, 0)")
        box = page.locator("#image").bounding_box()
        assert box["width"] > 250
        assert page.locator("#phrase").bounding_box()["y"] < 844
        here.shot("9-phone-result")
        here.shot("9-phone-whole", full_page=True)
        page.get_by_label("Point", exact=True).tap()
        page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.6 * box["height"])
        expect(page.locator(".object")).to_have_count(4)
        here.settle()
        for target in page.locator("button:visible, .segments label:visible").all():
            size = target.bounding_box()
            assert size["height"] >= 28, target.inner_text()


def test_pictures_in_the_dark(visit: Any, demo_url: str) -> None:
    with visit(demo_url, color_scheme="dark") as here:
        here.open_sample(1)
        here.ask("the large pink square; the small ellipse")
        here.settle()
        here.page.click("#tab-code")
        here.shot("3-result-dark")
