"""The areas of images that a model takes: its processor's, narrowed by profile and options."""

from dataclasses import dataclass

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from simpleseg_server.engines.profiles import Profile, read_json


@dataclass(frozen=True)
class ImageLimits:
    """The area above which images are scaled down, in pixels.

    ``arguments`` are what the image processor must be given for it; none where its own files say
    the same, or where it takes no such arguments.
    """

    max_pixels: int
    arguments: dict[str, int]

    @classmethod
    def of(cls, path: str, profile: Profile, max_pixels: int | None) -> "ImageLimits":
        """The limits of a folder or hub id; ``max_pixels`` is the operator's own bound."""
        if profile.input_hw is not None:
            return cls(profile.input_hw[0] * profile.input_hw[1], {})
        config = read_json(path, "preprocessor_config.json")
        if "in_token_limit" in config:  # Kimi-VL's, which counts patches before they are merged
            area = int(config["in_token_limit"]) * int(config["patch_size"]) ** 2
            return cls(min(filter(None, (area, profile.max_pixels, max_pixels))), {})
        own = _areas(Qwen2VLImageProcessorPil.from_pretrained(path))
        narrowed = _areas(load_image_processor(path, profile, max_pixels))
        arguments = dict(zip(("min_pixels", "max_pixels"), narrowed, strict=True))
        return cls(narrowed[1], {} if narrowed == own else arguments)


def names_normalisation(path: str) -> bool:
    """Whether the checkpoint's own file says what pixels are normalised by, or leaves that to the
    defaults of its processor's class."""
    config = read_json(path, "preprocessor_config.json")
    return {"image_mean", "image_std"} <= config.keys()


def load_image_processor(
    path: str, profile: Profile, max_pixels: int | None
) -> Qwen2VLImageProcessorPil:
    """The checkpoint's image processor of Qwen's kind, its areas narrowed."""
    # The Pillow class by name: the automatic choice prefers one that needs torchvision.
    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    least, most = _areas(processor)
    longest = min(filter(None, (most, profile.max_pixels, max_pixels)))
    shortest = min(max(least, profile.min_pixels or 0), longest)
    if (shortest, longest) == (least, most):
        return processor
    size = {"shortest_edge": shortest, "longest_edge": longest}
    return Qwen2VLImageProcessorPil.from_pretrained(path, size=size)


def _areas(processor: Qwen2VLImageProcessorPil) -> tuple[int, int]:
    """Least and most pixels, which the processor calls edges."""
    return int(processor.size["shortest_edge"]), int(processor.size["longest_edge"])
