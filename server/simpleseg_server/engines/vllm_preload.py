"""Import this to import what vLLM's process needs, and share it with the processes forked next.

It names modules of vLLM and imports none itself, so that it can be read without vLLM.
"""

import gc
from importlib import import_module

from simpleseg_server.imports import without_collection

with without_collection():
    for _name in (
        "vllm.v1.engine.core",
        "vllm.v1.worker.cpu_worker",
        "simpleseg_server.engines.drafter",
    ):
        import_module(_name)
gc.freeze()  # a collection in a forked process would copy every page that it looks through
