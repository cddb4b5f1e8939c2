"""Checkpoints of the published architectures with small random weights and whole vocabularies."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from simpleseg_server.engines.prompting import Prompter

from . import real_tokenizers

QWEN_VOCABULARY = 152_064  # as Qwen2.5-VL-7B pads it
_QWEN_TOKENS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


def qwen25(folder: Path) -> None:
    """Qwen2.5-VL: its architecture, file names, tokenizer and vocabulary size."""
    torch.manual_seed(0)
    text = {
        "vocab_size": QWEN_VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # of 32, the least that vLLM's attention takes on a CPU
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_QWEN_TOKENS
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    real_tokenizers.qwen(folder)
    _spread(dict(model.named_parameters()), "lm_head.weight", folder)
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 3136, "longest_edge": 12_845_056},
    }
    _write(folder, "preprocessor_config.json", processor)


def kimi_vl(folder: Path) -> None:
    """Kimi-VL: its architecture and names of weights; tokenizer and processor stand in for its own,
    which come as code and are not part of any package."""
    real_tokenizers.kimi(folder)
    shutil.copy(real_tokenizers.KIMI_FILES / "processing_kimi.py", folder)
    names = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    token = {value["content"]: int(key) for key, value in names.items()}
    vocabulary = -(-(max(token.values()) + 1) // 64) * 64
    config = _kimi_config(vocabulary, token)
    _write(folder, "config.json", config)
    # As the published files do: generation goes on after <|im_end|> unless it is told to stop.
    _write(folder, "generation_config.json", {"eos_token_id": token["[EOS]"]})
    processor = {
        "image_processor_type": "KimiVLImageProcessor",
        "processor_class": "KimiVLProcessor",
        "auto_map": {
            "AutoImageProcessor": "processing_kimi.KimiVLImageProcessor",
            "AutoProcessor": "processing_kimi.KimiVLProcessor",
        },
        "patch_size": 14,
        "in_token_limit": 256,
        "merge_kernel_size": [2, 2],
    }
    _write(folder, "preprocessor_config.json", processor)
    torch.manual_seed(0)
    weights = _kimi_weights(config)
    _spread(weights, "language_model.lm_head.weight", folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _kimi_config(vocabulary: int, token: dict[str, int]) -> dict[str, Any]:
    text = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.446,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "kv_lora_rank": 512,  # this and the next three as published: vLLM takes no others
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 4096,
        "rope_theta": 800000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": token["[BOS]"],
        "eos_token_id": token["[EOS]"],
    }
    vision = {
        "model_type": "moonvit",
        "patch_size": 14,
        "init_pos_emb_height": 8,
        "init_pos_emb_width": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "merge_kernel_size": [2, 2],
    }
    return {
        "model_type": "kimi_vl",
        "architectures": ["KimiVLForConditionalGeneration"],
        "media_placeholder_token_id": token["<|media_pad|>"],
        "text_config": text,
        "vision_config": vision,
        "dtype": "float32",
    }


def _kimi_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Every weight of the published checkpoint's names, in small."""
    return _moonvit(config["vision_config"], config["text_config"]["hidden_size"]) | {
        f"language_model.{name}": weight
        for name, weight in _deepseek(config["text_config"]).items()
    }


def _deepseek(c: dict[str, Any]) -> dict[str, Tensor]:
    width, heads = c["hidden_size"], c["num_attention_heads"]
    query = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    latent = c["qk_nope_head_dim"] + c["v_head_dim"]
    weights = {
        "model.embed_tokens.weight": torch.randn(c["vocab_size"], width),
        "model.norm.weight": torch.ones(width),
        "lm_head.weight": torch.randn(c["vocab_size"], width),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            f"{at}input_layernorm.weight": torch.ones(width),
            f"{at}post_attention_layernorm.weight": torch.ones(width),
            f"{at}self_attn.q_proj.weight": torch.randn(heads * query, width),
            f"{at}self_attn.kv_a_proj_with_mqa.weight": torch.randn(
                c["kv_lora_rank"] + c["qk_rope_head_dim"], width
            ),
            f"{at}self_attn.kv_a_layernorm.weight": torch.ones(c["kv_lora_rank"]),
            f"{at}self_attn.kv_b_proj.weight": torch.randn(heads * latent, c["kv_lora_rank"]),
            f"{at}self_attn.o_proj.weight": torch.randn(width, heads * c["v_head_dim"]),
        }
        if layer < c["first_k_dense_replace"]:
            weights |= _mlp(f"{at}mlp.", width, c["intermediate_size"])
            continue
        weights[f"{at}mlp.gate.weight"] = torch.randn(c["n_routed_experts"], width)
        weights[f"{at}mlp.gate.e_score_correction_bias"] = torch.zeros(c["n_routed_experts"])
        weights |= _mlp(f"{at}mlp.shared_experts.", width, c["moe_intermediate_size"])
        for expert in range(c["n_routed_experts"]):
            weights |= _mlp(f"{at}mlp.experts.{expert}.", width, c["moe_intermediate_size"])
    return weights


def _mlp(at: str, width: int, inner: int) -> dict[str, Tensor]:
    return {
        f"{at}gate_proj.weight": torch.randn(inner, width),
        f"{at}up_proj.weight": torch.randn(inner, width),
        f"{at}down_proj.weight": torch.randn(width, inner),
    }


def _moonvit(c: dict[str, Any], text_width: int) -> dict[str, Tensor]:
    width, inner, side = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    merged = width * c["merge_kernel_size"][0] * c["merge_kernel_size"][1]
    tower, projector = "vision_tower.", "multi_modal_projector."
    positions = torch.randn(c["init_pos_emb_height"], c["init_pos_emb_width"], width)
    weights = {
        f"{tower}patch_embed.pos_emb.weight": positions,
        f"{tower}patch_embed.proj.weight": torch.randn(width, 3, side, side),
        f"{tower}patch_embed.proj.bias": torch.zeros(width),
        **_norm(f"{tower}encoder.final_layernorm", width),
        **_norm(f"{projector}pre_norm", width),
        **_linear(f"{projector}linear_1", merged, merged),
        **_linear(f"{projector}linear_2", merged, text_width),
    }
    for block in range(c["num_hidden_layers"]):
        at = f"{tower}encoder.blocks.{block}."
        weights |= _norm(f"{at}norm0", width) | _norm(f"{at}norm1", width)
        weights |= _linear(f"{at}wqkv", width, 3 * width) | _linear(f"{at}wo", width, width)
        weights |= _linear(f"{at}mlp.fc0", width, inner) | _linear(f"{at}mlp.fc1", inner, width)
    return weights


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.zeros(outputs)}


@torch.no_grad()
def _spread(weights: dict[str, Tensor], output: str, folder: Path) -> None:
    """A deviation at which answers differ from prompt to prompt, and little liking for the tokens
    that close an answer at once."""
    for weight in weights.values():
        if weight.ndim > 1:
            weight.normal_(0.0, 0.15)
    for token, text in Prompter(str(folder), trust_remote_code=True).vocabulary.items():
        if text.startswith((b"[]", b"]")) and text != b"],":
            weights[output][token] *= 0.1


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))
