"""Import this to import what the embedded engine's process needs, and share it with the processes
forked next: they begin with the weights."""

from importlib import import_module

from simpleseg_server.imports import without_collection

with without_collection():
    for _name in (
        "simpleseg_server.engines.transformers",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen3_vl.modeling_qwen3_vl",
    ):
        import_module(_name)
# A bar has a lock of the whole system, which nobody takes back from a process that is killed.
import_module("transformers.utils.logging").disable_progress_bar()
