"""A source for FiftyOne's model zoo: copy this folder into the folder that ``fiftyone config
model_zoo_dir`` names, or register the address of a repository that holds it. Then::

    import fiftyone.zoo as foz

    model = foz.load_zoo_model("simpleseg/server", labels="dog, car=the red car")
    dataset.apply_model(model, label_field="simpleseg", batch_size=16)
"""

from pathlib import Path
from typing import Any

from simpleseg.integrations import fiftyone


def download_model(model_name: str, model_path: str) -> None:
    """FiftyOne asks for a file; the model itself is with the server."""
    Path(model_path).write_text(f"{model_name} is what simpleseg.integrations.fiftyone asks\n")


def load_model(model_name: str, model_path: str, **options: Any) -> Any:
    """The model; ``options`` are those of ``simpleseg.integrations.fiftyone.load_model``."""
    return fiftyone.load_model(**options)
