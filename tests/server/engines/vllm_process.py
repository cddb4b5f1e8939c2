"""vLLM's own OpenAI server as a process that a test starts, kills and starts again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

START_S = 500
# A start in 20 seconds instead of a minute; see vllm_environment.py.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VllmProcess:
    """A server of a checkpoint on one port, in a process group of its own: it has children."""

    def __init__(self, checkpoint: Path, log: Path, *, image_px: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._checkpoint = checkpoint
        self._log = log
        self._image_px = image_px
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns at once."""
        side = self._image_px
        limits = f'{{"image": {{"count": 1, "width": {side}, "height": {side}}}, "video": 0}}'
        arguments = {
            "--model": str(self._checkpoint),
            "--served-model-name": "simpleseg-demo",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "8192",
            "--max-num-seqs": "8",
            "--limit-mm-per-prompt": limits,
            "--structured-outputs-config": '{"backend": "xgrammar"}',
        }
        # Not `vllm serve`, which asks for a distribution of exactly that name.
        command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
        command += ["--enforce-eager", *(word for pair in arguments.items() for word in pair)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it is healthy."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"vLLM did not start:\n{self._log.read_text()[-3000:]}")

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        """The server and its children, at once. Idempotent."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None
