# %% [markdown]
# # A folder of images to a COCO data set
#
# The model proposes, a person corrects: the data set opens in CVAT, FiftyOne or any other tool
# that reads COCO. `simpleseg batch examples/images "the hexagon" -o dataset.json` does the same
# without a line of Python, and goes on where it was stopped; here every step is open to change.
#
# Run it beside a server: `python examples/annotate_folder.py`. SIMPLESEG_BASE_URL says where that
# is.

# %%
import json
from pathlib import Path

from simpleseg import PromptItem, SimpleSeg
from simpleseg.formats import coco_dataset

FOLDER = Path(__file__).parent / "images"
OUTPUT = Path("annotations.json")
CATEGORIES = {1: "hexagon", 2: "circle"}
UNSURE = 0.5  # answers with a lower score are worth a look

# %% [markdown]
# One question for each image and category. Eight images are under way at once, and the file's
# order is kept. An image that cannot be read costs its own answer and no other.

# %%
files = sorted(FOLDER.glob("*.png"))
prompts = [PromptItem(text=f"the {name}") for name in CATEGORIES.values()]
with SimpleSeg(timeout=300) as client:
    outcomes = list(client.segment_many(files, prompts, on_error="yield", progress=True))
answered = [outcome for outcome in outcomes if outcome.error is None]
for outcome in outcomes:
    if outcome.error is not None:
        print(f"{files[outcome.index].name}: {outcome.error}")

# %% [markdown]
# `empty` is an answer too: the model says that the object is not there. How often it is right about
# that its model card tells.

# %%
annotations = [
    result.to_coco(image_id=number, category_id=category)
    for number, outcome in enumerate(answered, 1)
    for category, result in zip(CATEGORIES, outcome.results, strict=True)
    if result.status == "ok"
]
names = [files[outcome.index].name for outcome in answered]
sizes = [outcome.results[0].size_hw for outcome in answered]
OUTPUT.write_text(json.dumps(coco_dataset(names, sizes, annotations, CATEGORIES)))
print(f"{len(annotations)} annotations of {len(names)} images in {OUTPUT}")

# %% [markdown]
# What to look at first.

# %%
found = [result for outcome in answered for result in outcome.results if result.score is not None]
for result in sorted(found, key=lambda result: result.score or 0):
    if (result.score or 0) < UNSURE:
        print(f"score {result.score:.2f}: {result.label}, {result.point_count} points")
