"""Run by X-AnyLabeling's own Python: its client of a remote server, without a window.

``python x_anylabeling_client.py URL KEY PICTURE`` prints what it understood, as JSON.
"""

import json
import sys
from typing import Any

import anylabeling.config
from anylabeling.services.auto_labeling.remote_server import RemoteServer
from PyQt6.QtGui import QImage


def main(url: str, key: str, picture: str) -> dict[str, Any]:
    said: list[str] = []
    settings = {"remote_server_settings": {"server_url": url, "api_key": key}}
    anylabeling.config.current_config_file = json.dumps(settings)  # as YAML, in place of its file
    config = {"type": "remote_server", "display_name": "Remote-Server"}
    client = RemoteServer(config, on_message=said.append)
    models = client.get_available_models()
    client.set_model_id(next(iter(models), None))
    image = QImage(picture)

    def ask(**options: Any) -> list[Any]:
        result = client.predict_shapes(image, picture, **options)
        return [
            [one.label, one.shape_type, [[p.x(), p.y()] for p in one.points], one.score]
            for one in result.shapes
        ]

    phrases = ask(text_prompt="the dog, the cat")
    client.set_auto_labeling_marks([{"type": "rectangle", "data": [20, 10, 60, 70], "label": 1}])
    marked = ask()
    client.set_auto_labeling_marks([{"type": "point", "data": [20, 10], "label": 0}])
    refused = ask()
    return {
        "models": list(models),
        "batch": client.get_batch_processing_mode(),
        "phrases": phrases,
        "marked": marked,
        "refused": refused,
        "said": said,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
