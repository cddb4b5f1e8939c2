"""Draw the figures of the documentation from the code, a real answer, and recorded measurements.

    python docs/scripts/figures.py [FOLDER]

They go to ``docs/figures`` where no folder is named. Needs the extras ``server`` and ``training``.
"""

import asyncio
import sys
from pathlib import Path

import draw_automaton
import draw_drafts
import draw_idea
import draw_steps
import draw_waterfall
import recording
from matplotlib import style as plotting
from style import RC

FOLDER = Path(__file__).parents[1] / "figures"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    plotting.use(RC)
    draw_automaton.draw(folder / "region-grammar.svg")
    draw_steps.draw(folder / "steps-per-token.svg")
    draw_waterfall.draw(folder / "waterfall.png")
    recorded = asyncio.run(recording.record(recording.IMAGE, recording.PHRASE))
    draw_drafts.draw(recorded, folder / "drafts.svg")
    draw_idea.draw(recorded, folder / "idea.png")


if __name__ == "__main__":
    main()
