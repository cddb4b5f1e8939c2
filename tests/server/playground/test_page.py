"""The page with the demo model, as people use it."""

import base64
import io
import re
from typing import Any

import pytest
from PIL import Image

from .conftest import ROOT

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

# Every number of vertices of the first outline, with whether a run was under way then.
RECORD = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const shape = document.querySelector(".shape");
    const count = shape ? Number(shape.dataset.vertices) : 0;
    const running = document.body.classList.contains("running");
    const open = shape ? !shape.querySelector(".line").getAttribute("d").endsWith("Z") : false;
    const last = seen.at(-1);
    if (!last || last[0] !== count) seen.push([count, running, open]);
  }).observe(document.body, { subtree: true, attributes: true, childList: true });
}"""


def test_an_outline_grows_vertex_by_vertex(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.shot("1-empty")
        here.open_sample(0)
        here.page.evaluate(RECORD)
        here.ask("the large circle")
        here.page.locator(".object[data-status=ok]").wait_for()
        here.settle()
        seen = here.page.evaluate("seen")
        growing = [count for count, running, open_ in seen if running and open_ and count]
        assert growing == sorted(growing)
        assert len(growing) >= 3, "it drew itself in fewer than three steps"
        total = int(here.page.locator(".shape").get_attribute("data-vertices"))
        assert growing[0] < total
        card = here.page.locator(".object")
        expect(card.locator(".status")).to_have_text("Found")
        expect(card.locator(".facts")).to_contain_text(f"{total} vertices")
        assert 0 < float(card.locator(".score-number").inner_text()) < 1
        expect(here.page.locator("#live")).to_contain_text("the large circle: found")


def test_several_phrases_in_colours_of_their_own(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.open_sample(0)
        here.ask("the large circle; the small crescent ; the green triangle")
        expect(here.page.locator(".object[data-status=ok]")).to_have_count(3)
        here.settle()
        colours = here.page.eval_on_selector_all(
            ".shape .line", "lines => lines.map((line) => getComputedStyle(line).stroke)"
        )
        assert len(set(colours)) == 3
        here.page.locator(".object").nth(2).hover()
        expect(here.page.locator(".tag:visible")).to_have_count(2)  # of the selected one as well
        here.shot("3-result")
        here.page.locator(".object").nth(1).locator(".object-head").click()
        here.page.locator(".object.selected [data-action=hide]").click()
        expect(here.page.locator(".shape.gone")).to_have_count(1)
        here.page.locator(".object.selected [data-action=remove]").click()
        expect(here.page.locator(".object")).to_have_count(2)
        expect(here.page.locator(".shape")).to_have_count(2)
        here.page.locator("#clear").click()
        expect(here.page.locator(".shape")).to_have_count(0)


def test_a_point_and_a_box(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.open_sample(0)
        requests = here.requests("/segment")
        box = here.page.locator("#image").bounding_box()

        def at(x: float, y: float) -> tuple[float, float]:
            return box["x"] + x * box["width"], box["y"] + y * box["height"]

        here.page.get_by_label("Point", exact=True).click()
        here.page.mouse.click(*at(0.62, 0.3))
        here.page.locator(".object[data-status=ok]").wait_for()
        here.settle()
        point = requests[0].post_data_json["prompts"][0]["point"]
        assert point == pytest.approx([0.62, 0.3], abs=0.01)
        here.page.get_by_label("Box", exact=True).click()
        here.page.mouse.move(*at(0.1, 0.42))
        here.page.mouse.down()
        here.page.mouse.move(*at(0.2, 0.5))
        here.page.mouse.move(*at(0.4, 0.7), steps=4)
        here.shot("4-box")
        here.page.mouse.up()
        here.page.locator(".object[data-status=ok]").nth(1).wait_for()
        here.settle()
        asked = requests[1].post_data_json["prompts"][0]["box"]
        assert asked == pytest.approx([0.1, 0.42, 0.4, 0.7], abs=0.01)
        names = here.page.locator(".object-name").all_inner_texts()
        assert [name.split()[0] for name in names] == ["Point", "Box"]
        # A phrase in the field goes with the point.
        here.page.fill("#phrase", "the circle")
        here.page.get_by_label("Point", exact=True).click()
        here.page.mouse.click(*at(0.62, 0.3))
        here.settle()
        assert requests[2].post_data_json["prompts"][0]["text"] == "the circle"


def test_one_upload_serves_many_prompts(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        uploads = here.requests("/v1/images")
        here.open_sample(2)
        for _ in range(2):
            here.ask("the hexagon")
            here.settle()
        expect(here.page.locator(".object[data-status=ok]")).to_have_count(2)
        assert len(uploads) == 1


def test_dragging_a_vertex_corrects_the_outline(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.open_sample(2)
        here.ask("the hexagon")
        here.settle()
        path = here.page.locator(".shape .line")
        before = path.get_attribute("d")
        handle = here.page.locator(".handle").first.locator(".knob")
        at = handle.bounding_box()
        here.page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        here.page.mouse.down()
        here.page.mouse.move(at["x"] - 60, at["y"] - 40, steps=5)
        here.page.mouse.up()
        assert path.get_attribute("d") != before
        expect(here.page.locator(".object .facts")).to_contain_text("corrected by hand")
        here.shot("5-corrected")
        here.page.locator("[data-action=undo]").click()  # one drag is one step
        assert path.get_attribute("d") == before
        expect(here.page.locator(".object .facts")).not_to_contain_text("corrected")


def test_a_double_click_adds_a_vertex_and_an_alt_click_removes_one(
    visit: Any, demo_url: str
) -> None:
    with visit(demo_url) as here:
        here.open_sample(2)
        here.ask("the hexagon")
        here.settle()
        shape = here.page.locator(".shape")
        count = int(shape.get_attribute("data-vertices"))
        ends = [here.page.locator(".knob").nth(k).bounding_box() for k in (0, 1)]
        middle = [sum(end[side] + end["width"] / 2 for end in ends) / 2 for side in ("x", "y")]
        here.page.mouse.dblclick(*middle)
        expect(shape).to_have_attribute("data-vertices", str(count + 1))
        added = here.page.locator(".knob").nth(1).bounding_box()
        assert added["x"] + added["width"] / 2 == pytest.approx(middle[0], abs=2)
        here.page.locator(".reach").nth(1).click(modifiers=["Alt"])
        expect(shape).to_have_attribute("data-vertices", str(count))
        image = here.page.locator("#image").bounding_box()
        here.page.mouse.dblclick(
            image["x"] + image["width"] * 0.65, image["y"] + image["height"] / 2
        )
        expect(shape).to_have_attribute("data-vertices", str(count))  # inside, far from the outline


def test_timing_says_where_the_time_went(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.open_sample(2)
        here.ask("the hexagon")
        here.settle()
        stages = here.page.eval_on_selector_all(
            "#pane-timing tr[data-stage]", "rows => rows.map((row) => row.dataset.stage)"
        )
        assert {"prefill", "decode", "network"} <= set(stages)
        text = here.page.locator("#pane-timing").inner_text()
        assert re.search(r"Tokens per vertex\s+\d+\.\d", text)
        assert re.search(r"Drafts accepted\s+\d+ %", text)
        fits = here.page.evaluate(
            """() => [...document.querySelectorAll(".waterfall .track")].every((track) => {
              const outer = track.getBoundingClientRect();
              const inner = track.firstChild.getBoundingClientRect();
              return inner.left >= outer.left - 1 && inner.right <= outer.right + 3;
            })"""
        )
        assert fits
        here.page.click("#tab-raw")
        assert re.match(r"\[\[\[0?\.?\d", here.page.locator("pre.raw").inner_text())


def test_fill_and_zoom(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        here.open_sample(2)
        here.ask("the hexagon")
        here.settle()
        here.page.locator("#opacity").fill("80")
        fill = here.page.eval_on_selector(
            ".shape .area", "area => Number(getComputedStyle(area).fillOpacity)"
        )
        assert fill > 0.75
        width = here.page.locator("#image").bounding_box()["width"]
        here.page.click("#zoom-in")
        assert here.page.locator("#image").bounding_box()["width"] == pytest.approx(width * 1.5)
        knob = here.page.locator(".knob").first.bounding_box()["width"]
        here.page.click("#zoom-fit")
        # Handles stay as large on the screen, however large the picture is.
        again = here.page.locator(".knob").first.bounding_box()["width"]
        assert again == pytest.approx(knob, rel=0.1)


def picture(format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.open(ROOT / "examples/images/scene-04.png").convert("RGB").resize((300, 200)).save(
        buffer, format_name, **options
    )
    return buffer.getvalue()


def test_images_from_a_file_a_drop_a_paste_and_a_data_url(visit: Any, demo_url: str) -> None:
    with visit(demo_url) as here:
        files = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": picture("JPEG")}
        here.page.set_input_files("#file", files)
        expect(here.page.locator("#file-name")).to_have_text("mine.jpg  300 × 200")
        for kind in ("drop", "paste"):
            here.page.evaluate(
                """([kind, base64]) => {
                  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                  const data = new DataTransfer();
                  data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
                  const options = { bubbles: true, cancelable: true };
                  const event = kind === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, ...options })
                    : new ClipboardEvent("paste", { clipboardData: data, ...options });
                  document.body.dispatchEvent(event);
                }""",
                [kind, base64.b64encode(picture()).decode()],
            )
            expect(here.page.locator("#file-name")).to_have_text(f"{kind}.png  300 × 200")
        here.page.click("#change-image")
        here.page.click("#url-button")
        url = "data:image/png;base64," + base64.b64encode(picture()).decode()
        here.page.fill("#url-input", url)
        here.page.press("#url-input", "Enter")
        expect(here.page.locator("#file-name")).to_have_text("image  300 × 200")
        here.ask("the hexagon")
        here.settle()
        expect(here.page.locator(".object")).to_have_count(1)


def test_a_turned_photograph_is_asked_about_as_it_is_shown(visit: Any, demo_url: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": picture("JPEG", exif=exif)}
    with visit(demo_url) as here:
        here.page.set_input_files("#file", files)
        expect(here.page.locator("#file-name")).to_have_text("a.jpg  200 × 300")
        with here.page.expect_response(lambda r: r.url.endswith("/v1/images")) as coming:
            here.ask("the hexagon")
        kept = coming.value.json()
        assert (kept["width"], kept["height"], kept["exif_applied"]) == (200, 300, True)
        here.settle()


def test_a_picture_from_the_camera(visit: Any, demo_url: str) -> None:
    with visit(demo_url, permissions=["camera"]) as here:
        here.page.click("#camera-button")
        expect(here.page.locator("#camera-take")).to_be_enabled()
        here.shot("6-camera")
        here.page.click("#camera-take")
        expect(here.page.locator("#file-name")).to_contain_text("camera.jpg")
