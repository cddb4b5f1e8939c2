"""The layers of an image in an OCI folder: ``layers.py FOLDER``; and what a bill of materials
lists: ``layers.py --bill FILE``."""

import gzip
import json
import sys
from pathlib import Path


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def sizes(folder: Path) -> list[tuple[str, int, int]]:
    """Each layer's instruction, bytes and compressed bytes, from the first."""
    index = json.loads((folder / "index.json").read_text())
    manifest = json.loads(_blob(folder, index["manifests"][0]["digest"]).read_text())
    history = json.loads(_blob(folder, manifest["config"]["digest"]).read_text())["history"]
    made = [step.get("created_by", "") for step in history if not step.get("empty_layer")]
    return [
        (what, _unpacked(_blob(folder, layer["digest"])), layer["size"])
        for what, layer in zip(made, manifest["layers"], strict=True)
    ]


def _unpacked(layer: Path) -> int:
    with gzip.open(layer) as file:
        return file.seek(0, 2)


def bill(file: Path) -> str:
    found = json.loads(file.read_text())
    ours = [one for one in found["components"] if one["name"] == "simpleseg-server"]
    assert ours, "this project is not among the components"
    return f"{found['bomFormat']} {found['specVersion']}: {len(found['components'])} components"


def main(arguments: list[str]) -> None:
    if arguments[0] == "--bill":
        print(bill(Path(arguments[1])))
        return
    layers = sizes(Path(arguments[0]))
    print("     MB  compressed  made by")
    for what, size, packed in layers:
        print(f"{size / 1e6:7.1f} {packed / 1e6:11.1f}  {what[:90]}")
    print(f"{sum(s for _, s, _ in layers) / 1e6:7.1f} {sum(p for *_, p in layers) / 1e6:11.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
