"""What the clients can ask, each as one ``Call``: the same for both of them."""

from collections.abc import Sequence
from functools import partial

from simpleseg.image_input import ImageInput, sent_image
from simpleseg.protocol import (
    MODELS_PATH,
    Call,
    HttpResponse,
    Prompts,
    SegmentOptions,
    as_prompts,
    check_status,
    format_error,
    image_request,
    read_answer,
    read_segment_response,
    request_of,
    segment_request,
    upload_request,
)
from simpleseg.results import Segmentation, segmentations
from simpleseg.schema import (
    DeletedImage,
    ModelInfo,
    ModelList,
    PromptItem,
    SegmentResponse,
    Task,
    UploadedImage,
)
from simpleseg.streaming import StreamReader


def segment_call(
    image: ImageInput, prompt: Prompts, options: SegmentOptions
) -> Call[list[Segmentation]]:
    """Regions, one for each prompt. Reads a file where ``image`` is a path, as do those below."""
    sent, prompts = sent_image(image), as_prompts(prompt)

    def read(response: HttpResponse) -> list[Segmentation]:
        answer = read_segment_response(response, len(prompts))
        return segmentations(answer, response.request_id, sent.open_image)

    return Call(segment_request(sent, prompts, "region", options), read)


def one_or_all(results: list[Segmentation], prompt: Prompts) -> Segmentation | list[Segmentation]:
    """What ``segment`` returns: for one prompt that is not in a list its result alone."""
    return results[0] if isinstance(prompt, str | PromptItem) else results


def respond_call(
    image: ImageInput, prompt: Prompts, task: Task, options: SegmentOptions
) -> Call[SegmentResponse]:
    """The whole answer, for any task."""
    prompts = as_prompts(prompt)
    request = segment_request(sent_image(image), prompts, task, options)
    return Call(request, partial(read_segment_response, prompt_count=len(prompts)))


def stream_call(image: ImageInput, prompt: Prompts, options: SegmentOptions) -> Call[StreamReader]:
    """Events. The answer is read before its body has come, unless it is an error."""
    sent, prompts = sent_image(image), as_prompts(prompt)

    def read(response: HttpResponse) -> StreamReader:
        check_status(response)
        kind = response.headers.get("content-type", "")
        if not kind.lower().startswith("text/event-stream"):
            raise format_error(f"the answer is not a stream but {kind!r}", response.request_id)
        return StreamReader(response.request_id, len(prompts), sent.open_image)

    return Call(segment_request(sent, prompts, "region", options, stream=True), read)


def upload_call(image: ImageInput) -> Call[UploadedImage]:
    """Keep an image on the server."""
    return Call(upload_request(sent_image(image)), partial(read_answer, model=UploadedImage))


def get_image_call(image: UploadedImage | str) -> Call[UploadedImage]:
    """A kept image's size and end."""
    request = image_request("GET", _image_id(image))
    return Call(request, partial(read_answer, model=UploadedImage))


def delete_image_call(image: UploadedImage | str) -> Call[None]:
    """Forget a kept image."""

    def read(response: HttpResponse) -> None:
        read_answer(response, DeletedImage)

    return Call(image_request("DELETE", _image_id(image)), read)


def models_call() -> Call[Sequence[ModelInfo]]:
    """What the server serves."""

    def read(response: HttpResponse) -> Sequence[ModelInfo]:
        return read_answer(response, ModelList).data

    return Call(request_of("GET", MODELS_PATH), read)


def _image_id(image: UploadedImage | str) -> str:
    return image if isinstance(image, str) else image.id
