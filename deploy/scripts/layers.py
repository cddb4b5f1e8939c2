"""The layers of an image: ``layers.py COMPRESSED UNCOMPRESSED``, two OCI folders of it; and what a
bill of materials lists: ``layers.py --bill FILE``."""

import json
import sys
from pathlib import Path
from typing import Any


def _blob(folder: Path, digest: str) -> Any:
    return json.loads((folder / "blobs" / digest.replace(":", "/")).read_text())


def sizes(folder: Path) -> list[tuple[str, int]]:
    """Each layer's instruction and bytes, from the first."""
    index = json.loads((folder / "index.json").read_text())
    manifest = _blob(folder, index["manifests"][0]["digest"])
    history = _blob(folder, manifest["config"]["digest"])["history"]
    made = [step.get("created_by", "") for step in history if not step.get("empty_layer")]
    return [(what, layer["size"]) for what, layer in zip(made, manifest["layers"], strict=True)]


def bill(file: Path) -> str:
    found = json.loads(file.read_text())
    return (
        f"{found['bomFormat']} {found['specVersion']}: {len(found['components'])} components, "
        f"of {found['metadata']['component']['name'] if 'component' in found['metadata'] else '-'}"
    )


def main(arguments: list[str]) -> None:
    if arguments[0] == "--bill":
        print(bill(Path(arguments[1])))
        return
    packed, unpacked = (sizes(Path(one)) for one in arguments)
    print("  MB compressed, made by")
    for (what, size), (_, small) in zip(unpacked, packed, strict=True):
        print(f"{size / 1e6:7.1f} {small / 1e6:7.1f}  {what[:90]}")
    print(f"{sum(s for _, s in unpacked) / 1e6:7.1f} {sum(s for _, s in packed) / 1e6:7.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
