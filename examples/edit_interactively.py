# %% [markdown]
# # Point, box, correct, export
#
# What an annotation tool does behind its canvas: a click or a box instead of a phrase, vertices
# that appear while the model writes, a second look, a vertex dragged by hand, and a file that
# other tools open. The image is uploaded once; every question then names it by its id.

# %%
import json
from dataclasses import replace
from pathlib import Path

from simpleseg import PromptItem, SimpleSeg
from simpleseg_polygon.geometry import Point, Region
from simpleseg_polygon.metrics import iou

IMAGE = Path(__file__).parent / "images/scene-04.png"
CLICK = [0.62, 0.5]  # x, y in [0, 1] of the displayed image
BOX = [0.27, 0.13, 0.96, 0.87]  # x0, y0, x1, y1

client = SimpleSeg(timeout=300)
kept = client.upload(IMAGE)

# %% [markdown]
# A click alone, a box alone, a phrase with a click: each is one prompt.

# %%
by_click, by_box, by_both = client.segment(
    kept,
    [PromptItem(point=CLICK), PromptItem(box=BOX), PromptItem(text="the hexagon", point=CLICK)],
)
for name, result in (("click", by_click), ("box", by_box), ("phrase and click", by_both)):
    print(f"{name}: {result.status}, {result.point_count} points")
print(f"click and box agree to {iou(by_click.mask(), by_box.mask()):.2f} (IoU)")

# %% [markdown]
# The same as a stream: draw each vertex as it comes.

# %%
with client.stream(kept, PromptItem(text="the hexagon", point=CLICK)) as stream:
    for event in stream:
        if event.type == "segmentation.points.delta":
            print("draw", event.points)
(first,) = stream.results

# %% [markdown]
# A second look at the part of the image around it, at full resolution.

# %%
refined = client.segment(kept, PromptItem(text="the hexagon", point=CLICK), refine=True)
print(f"first {first.point_count} points, refined {refined.point_count}")

# %% [markdown]
# A vertex dragged, another one deleted. Results do not change; an edit is a new one.


# %%
def moved(region: Region, part: int, vertex: int, to: Point | None) -> Region:
    """The region with one vertex elsewhere, or without it."""
    ring = region.parts[part]
    changed = (*ring[:vertex], *([] if to is None else [to]), *ring[vertex + 1 :])
    return Region((*region.parts[:part], changed, *region.parts[part + 1 :]))


edited = refined.region
corner = edited.parts[0][0]
edited = moved(edited, 0, 0, Point(corner.x - 0.02, corner.y))
if len(edited.parts[0]) > 4:
    edited = moved(edited, 0, 2, None)
corrected = replace(refined, region=edited, bbox=edited.bounding_box())
change = int((corrected.mask() ^ refined.mask()).sum())
print(f"the correction changed {change} pixels")

# %% [markdown]
# And out: labelme opens the first, everything that knows COCO the second.

# %%
Path("scene-04.json").write_text(json.dumps(corrected.to_labelme("scene-04.png")))
Path("scene-04.coco.json").write_text(json.dumps(corrected.to_coco()))
Path("scene-04.svg").write_text(corrected.to_svg())
client.delete_image(kept)
client.close()
