"""What the embedded engine keeps of the images used last: the vision tower's output, and the keys
and values of prompts that hold them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simpleseg_server.engines.checkpoint import ImageFeatures
from simpleseg_server.engines.kv_rows import RowStates


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """A prompt that the model has read: its ids, what it left in a cache row, and how far the
    rotary position of a token after the image is ahead of the token's place."""

    ids: Sequence[int]
    states: RowStates
    position_offset: int

    def shared(self, ids: Sequence[int]) -> int:
        """How many tokens from the first on another prompt has in common with this one, without
        its last: reading that one is what gives the answer's first token."""
        most = min(len(self.ids), len(ids) - 1)
        return next((at for at in range(most) if self.ids[at] != ids[at]), most)


@dataclass(eq=False)
class CachedImage:
    """One image: its features, and one prompt for each way to begin up to the image's end."""

    features: ImageFeatures
    prompts: dict[tuple[int, ...], ReadPrompt] = field(default_factory=dict)


LookedUp = Literal["image", "prompt"]


class ImageCache:
    """The ``max_images`` images used last, by image key, with at most ``max_bytes`` of keys and
    values: the prompts on images used longest ago go first. Features are not among these bytes.

    ``in`` and ``lookups``, which counts hits (True) and misses, may be asked from any thread; the
    rest is for one.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, CachedImage] = OrderedDict()
        kinds: tuple[LookedUp, ...] = ("image", "prompt")
        self.lookups = {(kind, is_hit): 0 for kind in kinds for is_hit in (True, False)}

    def __contains__(self, image_key: str) -> bool:
        return image_key in self._images

    @property
    def prompt_bytes(self) -> int:
        """Bytes of keys and values held."""
        images = self._images.values()
        return sum(prompt.states.nbytes for image in images for prompt in image.prompts.values())

    def get(self, image_key: str) -> CachedImage | None:
        """The image, which is then the one used last."""
        image = self._images.get(image_key)
        self.lookups["image", image is not None] += 1
        if image is not None:
            self._images.move_to_end(image_key)
        return image

    def prompt(self, image: CachedImage, beginning: tuple[int, ...]) -> ReadPrompt | None:
        """What was read of a prompt on the image that begins like this."""
        prompt = image.prompts.get(beginning)
        self.lookups["prompt", prompt is not None] += 1
        return prompt

    def put(self, image_key: str, features: ImageFeatures) -> CachedImage:
        """Add an image; the one used longest ago may have to go."""
        image = self._images[image_key] = CachedImage(features)
        while len(self._images) > self._max_images:
            self._images.popitem(last=False)
        return image

    def holds_prompt(self, image_key: str) -> bool:
        """Whether any prompt on the image has been read."""
        image = self._images.get(image_key)
        return image is not None and bool(image.prompts)

    def keep(self, image: CachedImage, beginning: tuple[int, ...], prompt: ReadPrompt) -> None:
        """Add a prompt to an image, unless it takes more than all prompts may together."""
        if prompt.states.nbytes <= self._max_bytes:
            image.prompts[beginning] = prompt
            self._shrink()

    def _shrink(self) -> None:
        """Drop prompts until the rest fit: those of the images used longest ago, oldest first."""
        excess = self.prompt_bytes - self._max_bytes
        for image in self._images.values():
            while excess > 0 and image.prompts:
                excess -= image.prompts.pop(next(iter(image.prompts))).states.nbytes
