"""Write the demo model's card from what a run and an evaluation recorded.

    python -m simpleseg_training.model_card --run runs/demo [--run runs/demo-2 ...] \\
        --results benchmarks/results/accuracy.json \\
        --calibration benchmarks/results/calibration.json \\
        --stress benchmarks/results/stress.json --out server/simpleseg_server/demo_model

The card (README.md) and the training curves go into the checkpoint's folder. Of several runs each
went on from the weights of the one before.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpleseg_training.history import read_history
from simpleseg_training.pictures import write_curves

_ROWS = {
    "giou": "mean IoU (gIoU)",
    "ciou": "cumulative IoU (cIoU)",
    "acc50": "regions with IoU of at least 0.5",
    "boundary_f": "boundary F-score",
    "box_acc50": "text -> box, IoU of at least 0.5",
    "empty_recall": "absent phrases answered with the empty region",
    "false_empty": "present phrases answered with the empty region",
    "baseline_frame": "baseline: mean IoU of the whole frame",
    "baseline_centre_box": "baseline: mean IoU of a centred box",
    "baseline_true_box": "baseline: mean IoU of the true bounding box",
    "tokens_per_answer": "tokens per region answer",
    "tokens_per_step": "tokens per forward pass, with drafts",
}

_CARD = """# simpleseg-demo

A vision-language model of {parameters:.1f} million parameters that segments drawn scenes by writing
polygons, trained from scratch by this project so that its server runs at once on a CPU. It speaks
the language of SimpleSeg (arXiv 2601.19228): asked "Output the polygon coordinates of the red star
in the image.", it answers `[[[0.312, 0.117], [0.344, 0.203], ...]].`

- Architecture: Qwen3-VL scaled down (`config.json`); transformers and vLLM load it unmodified.
- Input: one image of {image_px} x {image_px} pixels (the server stretches images to it). The vision
  tower gives 16 visual tokens.
- Tokens: Qwen2.5's tokenizer cut down to the words of the demo world. Numbers and brackets split
  exactly as Qwen's do, one token for each digit.
- Weights: bfloat16. On a CPU serve it in float32, the server's default.

## Data

Drawn scenes only (docs/contact-sheet.png in the repository shows some): one to six objects of 16
kinds (shapes, letters, blobs, thin and curved things), 12 colours, three textures, two sizes, on
flat, graded and noisy backgrounds, with occlusion. Phrases name one object by attributes,
extremes, order or relation, several objects, or one that is absent. Every source -> target pair
of [text, point, box, region] occurs. Train, validation and test scenes come from seed ranges that
never meet.

## Recipe

`python -m simpleseg_training.pretrain`, {images:,} images, batches of {batch} images, each with
several questions that share it{runs}:

- number-level soft targets: each digit is trained towards the conditional mass of a Gaussian around
  the true number, whose deviation falls from {sigma_start} to {sigma_end} thousandths;
- auxiliary losses, thrown away on export: what each visual token sees, which number is being
  written and was just written, which cells a question means;
- one object first, then several with questions about which is which, then every task;
- Muon for matrices, AdamW for the rest; constant rate, then a cosine to zero.

All ran on two CPU cores. The first run was changed on its way: the weights of the losses at 25,600
images, the pointing loss and the scenes of short questions at 76,800, its length at 102,400; the
second was shortened at 57,600 of its own; in the third, absent objects were asked for more often.
{reinforced}
![Training losses and validation IoU against images seen](curves.png)

## Results

Held-out test scenes, constrained greedy decoding in float32 by the embedded engine
(`python benchmarks/accuracy.py`, {limit:.0f} scenes of each data set).

{table}

`demo-single` has one object, `demo-multi` two or three of which the phrase means one, `demo-hard`
one to six with relations, several meant, or none. The worst answers (magenta) on `demo-multi`,
with the true area bright:

![Worst answers on demo-multi](failures.png)
{stress}
## Score

The server's `score` is the IoU to be expected (`simpleseg.json` holds the weights), fitted to one
half of the answers to validation scenes of all three data sets and measured on the other
(`python benchmarks/calibration.py`):

{calibration}

![Expected against true IoU of regions](reliability.png)

## Limits

- It knows drawn scenes. On photographs its answers mean nothing.
- It was trained on square images; others are stretched, which it has not seen.
- Coordinates lie on the grid of its {image_px} input pixels; outlines are simplified to about nine
  vertices, which by itself costs about 0.05 of IoU. Thin and curved objects suffer most.
- With several objects it picks the wrong one at times, above all for relations and order.
{absent}
"""


_ABSENT = """- Asked for an object that is not there, it says so {recall:.0%} of the time, else it
  outlines another; of an object that is there it says so {false:.1%} of the time (`demo-hard`)."""

_REINFORCED = """
Then {steps} steps of GSPO (`simpleseg train rl demo-rl`): {prompts} questions a step for regions
and boxes in scenes of {least} to {most} objects{oftener}, of {sampled} sampled answers to each the
{group} whose rewards vary most, rewards for IoU, distance of the centroids and form, learning rate
{rate:g}, the vision tower left as it was.
"""

_UNSCORED = "An answer that the object is not there has no score, and is not among them."

_RUNS = """ ({images}; every run goes on from the weights of
the one before, halfway through the curriculum and with fresh auxiliary heads)"""

_STRESS = """
### A style that training never saw

`demo-stress`: one to three glyphs of a colour emoji font (hearts, circles, squares) on parts of
photographs, one of them named in the demo world's words (`python benchmarks/accuracy.py --stress
FOLDER`, {n:.0f} cases).

{table}
"""


def stress_of(results: dict[str, dict[str, Any]]) -> str:
    """The section on drawings of another style."""
    (measured,) = results.values()
    return _STRESS.format(n=measured["n"], table=table_of(results))


def table_of(results: dict[str, dict[str, Any]]) -> str:
    """The metrics as a Markdown table, a column for each data set."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for name, title in _ROWS.items():
        if not any(name in m for m in results.values()):
            continue
        cells = [f"{m[name]:.3g}" if name in m else "" for m in results.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def absent_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How often the model says that an object is not there, rightly and wrongly."""
    measured = results["demo-hard"]
    return _ABSENT.format(recall=measured["empty_recall"], false=measured["false_empty"])


def reinforced_by(run: Path | None) -> str:
    """The paragraph on reinforcement learning, if there was any."""
    if run is None:
        return ""
    config = json.loads((run / "config.json").read_text())
    rollouts, optimisation = config["rollouts"], config["optimisation"]
    data = config["data"][0]
    absent = data.get("weights", {}).get("absent", 1)
    return _REINFORCED.format(
        least=data["objects"][0],
        most=data["objects"][1],
        oftener=f" (absent ones asked for {absent:g} times as often)" if absent != 1 else "",
        steps=json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"],
        prompts=rollouts["prompts"],
        sampled=rollouts["group"] * rollouts["oversample"],
        group=rollouts["group"],
        rate=optimisation["rate"],
    )


def calibration_of(measured: dict[str, Any]) -> str:
    """How far the score can be trusted, a line for each target."""
    lines = [
        "| answer | answers measured | expected calibration error | correlation |",
        "|---" * 4 + "|",
    ]
    for target in ("region", "box"):
        found = measured[target]
        lines.append(
            f"| {target} | {found['n']} | {found['error']:.3f} | {found['correlation']:.2f} |"
        )
    return "\n".join([*lines, "", _UNSCORED])


def write_card(
    runs: Sequence[Path],
    results_file: Path,
    calibration_file: Path,
    out: Path,
    parameters: float,
    stress_file: Path | None = None,
    reinforcement: Path | None = None,
) -> None:
    """``parameters`` is in millions."""
    stress = json.loads(stress_file.read_text())["results"] if stress_file else None
    history = read_history(runs)
    recipe = history.recipes[0]
    results = json.loads(results_file.read_text())["results"]
    card = _CARD.format(
        parameters=parameters,
        image_px=recipe["size"]["image_px"],
        images=sum(history.images),
        runs=_RUNS.format(images=_listed(history.images)) if len(runs) > 1 else "",
        batch=2 * recipe["batch_images"],
        sigma_start=recipe["sigma_start"],
        sigma_end=recipe["sigma_end"],
        limit=next(iter(results.values()))["n"],
        table=table_of(results),
        stress=stress_of(stress) if stress else "",
        reinforced=reinforced_by(reinforcement),
        absent=absent_of(results),
        calibration=calibration_of(json.loads(calibration_file.read_text())),
    )
    (out / "README.md").write_text(card)
    write_curves(history.records, out / "curves.png")


def _listed(images: Sequence[int]) -> str:
    """
    >>> _listed([155008, 125000, 1000])
    '155,008, then 125,000, then 1,000'
    """
    return ", then ".join(f"{count:,}" for count in images)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo model's card.")
    parser.add_argument(
        "--run", type=Path, required=True, action="append", help="folder of a pretraining run"
    )
    parser.add_argument("--results", type=Path, required=True, help="output of accuracy.py")
    parser.add_argument("--calibration", type=Path, required=True, help="output of calibration.py")
    parser.add_argument("--rl", type=Path, help="folder of the reinforcement learning after it")
    parser.add_argument("--stress", type=Path, help="output of accuracy.py --stress")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    options = parser.parse_args()
    weights = (options.out / "model.safetensors").stat().st_size / 2  # bytes of bfloat16
    write_card(
        options.run,
        options.results,
        options.calibration,
        options.out,
        weights / 1e6,
        options.stress,
        options.rl,
    )


if __name__ == "__main__":
    main()
