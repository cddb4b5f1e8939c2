"""Rollouts by a server: the answers that reinforcement learning scores, for models too large to
sample from in the trainer.

TRL's own way to vLLM sends a prompt whose image placeholder is already repeated for every visual
token, together with the image, which vLLM repeats again (huggingface/trl #6294). Here the server
gets the image and the question and makes the prompt itself; only the trainer's forward pass, which
has no other way, gets the repeated one.
"""

import base64
import io
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from simpleseg_training.export import export_run
from simpleseg_training.processing import Start
from simpleseg_training.train_config import Rollouts, ServerRollouts

WEIGHTS_VARIABLE = "SIMPLESEG_WEIGHTS"
_ATTEMPTS = 4
_Conversation = list[dict[str, Any]]


class ServerRollout:
    """TRL's ``rollout_func``: conversations -> token ids of prompts and answers.

    A server that does not answer, or refuses, ends the run: RuntimeError.
    """

    def __init__(self, server: ServerRollouts, rollouts: Rollouts, start: Start, out: Path) -> None:
        self._server = server
        self._sampling = {
            "model": server.model,
            "temperature": rollouts.temperature,
            "top_p": rollouts.top_p,
            "max_tokens": rollouts.max_tokens,
        }
        self._start = start
        self._weights = out / "rollout-weights"
        self._count = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        if self._count % self._server.refresh_every == 0 and trainer.state.global_step > 0:
            self._refresh(trainer)
        self._count += 1
        with self._client() as http, ThreadPoolExecutor(self._server.together) as pool:
            answers = list(pool.map(lambda prompt: self._answer(http, prompt), prompts))
        processor = self._start.processor
        tokenized = processor.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return {
            "prompt_ids": tokenized["input_ids"],
            "completion_ids": [self._ids(text, ended) for text, ended in answers],
            "logprobs": None,  # what TRL would use them for, it does with its own vLLM alone
        }

    def _client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self._server.url.rstrip("/"), timeout=self._server.timeout_s)

    def _ids(self, text: str, ended: bool) -> list[int]:
        """The answer's tokens, as the tokenizer writes the text; never none."""
        tokenizer = self._start.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id] if ended or not ids else ids

    def _answer(self, http: httpx2.Client, prompt: _Conversation) -> tuple[str, bool]:
        """The text, and whether it ended by itself."""
        body = self._sampling | {"messages": [_for_wire(message) for message in prompt]}
        choice = self._post(http, body)["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"] == "stop"

    def _post(self, http: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
        fault = "no answer"
        for attempt in range(_ATTEMPTS):
            try:
                response = http.post("/v1/chat/completions", json=body)
            except httpx2.TransportError as error:
                fault = type(error).__name__
            else:
                if response.status_code == 200:
                    found: dict[str, Any] = response.json()
                    return found
                fault = f"status {response.status_code}: {response.text[:300]}"
                if response.status_code < 500 and response.status_code != 429:
                    break
            time.sleep(0.2 * 4**attempt)
        raise RuntimeError(f"rollouts: {self._server.url}: {fault}")

    def _refresh(self, trainer: Any) -> None:
        """Export the weights, run the command that has the server load them, and wait for it."""
        export_run(trainer, self._start.files, self._weights)
        if trainer.accelerator.is_main_process:
            environment = os.environ | {WEIGHTS_VARIABLE: str(self._weights.resolve())}
            subprocess.run(self._server.refresh, env=environment, check=True)
            self._wait()
        trainer.accelerator.wait_for_everyone()

    def _wait(self) -> None:
        deadline = time.monotonic() + self._server.timeout_s
        with self._client() as http:
            while time.monotonic() < deadline:
                with suppress(httpx2.TransportError):
                    if http.get(self._server.ready).status_code == 200:
                        return
                time.sleep(0.5)
        raise RuntimeError(f"rollouts: {self._server.url} is not ready after its refresh")


def _for_wire(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its images as ``data:`` URLs."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    file = io.BytesIO()
    part["image"].save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
