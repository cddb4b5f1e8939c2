# %% [markdown]
# # From a phrase to 3D points: a mask aligned with a depth map
#
# A depth camera gives a colour image and, at another resolution, a depth map registered to it. A
# polygon has no resolution: it is rasterised on the depth map's own grid, so that no mask is
# resized.
#
# The depth map here is made up (a table seen at a slant, and a flat object on it), so that the
# result can be compared with what is true. With a camera, `depth_m` and the intrinsics come from
# its driver.

# %%
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simpleseg import SimpleSeg
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.raster import Rle, region_to_mask, rle_to_mask

IMAGES = Path(__file__).parent / "images"
IMAGE, PHRASE = "scene-04.png", "the hexagon"
DEPTH_SIZE = ImageSize(height=240, width=240)
FOCAL_PX = 300.0  # of the depth camera, for both axes
HEIGHT_M = 0.05  # of the object above the table


# %%
def sample_truth(image: str, phrase: str) -> NDArray[np.bool_]:
    """The shipped mask of a sample, on the depth map's grid."""
    samples = json.loads((IMAGES / "samples.json").read_text())
    (sample,) = [s for s in samples if (s["image"], s["phrase"]) == (image, phrase)]
    mask = Image.fromarray(rle_to_mask(Rle.from_coco(sample["truth_rle"])))
    return np.asarray(mask.resize((DEPTH_SIZE.width, DEPTH_SIZE.height), Image.Resampling.NEAREST))


def synthetic_depth(true_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Metres: a table 0.8 m away below and 1.2 m above, noise, and pixels without an echo."""
    random = np.random.default_rng(0)
    table = np.linspace(1.2, 0.8, DEPTH_SIZE.height)[:, None].repeat(DEPTH_SIZE.width, 1)
    depth = table - HEIGHT_M * true_mask + random.normal(0, 0.002, table.shape)
    depth[random.random(table.shape) < 0.05] = 0
    return depth.astype(np.float32)


def to_points(depth_m: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mask's valid pixels, (n, 3) metres in the camera's frame: x right, y down, z ahead."""
    rows, columns = np.nonzero(mask & (depth_m > 0))
    z = depth_m[rows, columns].astype(float)
    x = (columns + 0.5 - DEPTH_SIZE.width / 2) * z / FOCAL_PX
    y = (rows + 0.5 - DEPTH_SIZE.height / 2) * z / FOCAL_PX
    return np.stack([x, y, z], axis=1)


# %% [markdown]
# Ask, and put the answer onto the depth map. `deadline_ms` keeps a control loop in time: what is
# unfinished by then is `truncated`, with the vertices that are whole.

# %%
with SimpleSeg() as client:
    result = client.segment(IMAGES / IMAGE, PHRASE, deadline_ms=60_000)
if result.status != "ok":
    raise SystemExit(f"{PHRASE}: {result.status}")
mask = region_to_mask(result.region, DEPTH_SIZE)
truth = sample_truth(IMAGE, PHRASE)
depth_m = synthetic_depth(truth)

# %% [markdown]
# An outline that is a few pixels off takes in some of the table behind the object, which pulls a
# mean far off. The median does not mind.

# %%
points = to_points(depth_m, mask)
centre = np.median(points, axis=0)
spread = points - centre
near = points[np.linalg.norm(spread, axis=1) < 3 * np.median(np.linalg.norm(spread, axis=1))]
_, _, axes = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)
true_centre = np.median(to_points(depth_m, truth), axis=0)

print(f"{PHRASE}: {len(points)} points, score {result.score:.2f}")
print("centre (m):  ", np.round(centre, 3))
print("true centre: ", np.round(true_centre, 3))
print(f"off by {1000 * np.linalg.norm(centre - true_centre):.0f} mm")
print("close the gripper along", np.round(axes[1], 2), "and come along", np.round(axes[2], 2))
