"""Temporary quick evaluation for the first run."""
import json
import re

import cv2
import numpy as np
import torch

from simpleseg_training.examples import make_examples
from simpleseg_training.export import fast_tokenizer
from simpleseg_training.packing import Packer
from simpleseg_training.scenes import SPLITS, render_scene

_RING = re.compile(r"\[\[[\d., \[\]]*?\]\]")


def _mask(text, size=512):
    m = np.zeros((size, size), np.uint8)
    for ring in _RING.findall("[" + text.lstrip("[").join(["[", ""])):
        try:
            p = np.array(json.loads(ring), float)
        except Exception:
            continue
        if p.ndim == 2 and p.shape[1] == 2 and len(p) >= 3:
            cv2.fillPoly(m, [np.round(p * size * 16 - 8).astype(np.int32)], 1, 8, 4)
    return m[2::4, 2::4].astype(bool)


@torch.no_grad()
def quick_evaluation(model, tokenizer, size, data, limit):
    lo, hi = {"demo-single": (1, 1), "demo-multi": (2, 3)}[data]
    packer = Packer(tokenizer, size)
    tok = fast_tokenizer(tokenizer)
    cases = []
    seed = SPLITS["val"].start
    while len(cases) < limit:
        r = render_scene(seed, lo, hi, size.image_px)
        rng = np.random.default_rng((seed, 2))
        ex = make_examples(rng, r, 1, {("text", "region"): 1.0})
        bx = make_examples(rng, r, 1, {("text", "box"): 1.0})
        seed += 1
        if ex and bx:
            cases.append((r, ex[0], bx[0]))

    def answers(k, max_new):
        out = []
        for i in range(0, limit, 25):
            part = cases[i : i + 25]
            ids = [packer.prompt(c[k].instruction) for c in part]
            n = max(map(len, ids))
            pad = tok.pad_token_id
            x = torch.tensor([[pad] * (n - len(a)) + a for a in ids])
            am = torch.tensor([[0] * (n - len(a)) + [1] * len(a) for a in ids])
            from simpleseg_training.forward import patchify
            px = patchify(torch.from_numpy(np.stack([c[0].image_hw3 for c in part])))
            b, p, d = px.shape
            px = px.view(b, p, 3, 1, 16, 16).expand(-1, -1, -1, 2, -1, -1).reshape(b * p, -1)
            thw = torch.tensor([[1, size.grid, size.grid]] * b)
            mm = (x == model.config.image_token_id).long()
            g = model.generate(
                input_ids=x, attention_mask=am, pixel_values=px, image_grid_thw=thw,
                mm_token_type_ids=mm, max_new_tokens=max_new, do_sample=False,
                pad_token_id=pad, eos_token_id=tok.eos_token_id,
            )
            out += [tok.decode(t, skip_special_tokens=True) for t in g[:, n:]]
        return out

    text = answers(1, 260)
    ious = []
    for c, a in zip(cases, text):
        m = _mask(a)
        u = (m | c[1].mask_hw).sum()
        ious.append((m & c[1].mask_hw).sum() / u if u else 0.0)
    boxes = []
    for c, a in zip(cases, answers(2, 32)):
        try:
            p = json.loads(a.rstrip("."))
            q = json.loads(c[2].answer.rstrip("."))
            w = max(0, min(p[2], q[2]) - max(p[0], q[0])) * max(0, min(p[3], q[3]) - max(p[1], q[1]))
            s = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - w
            boxes.append(w / s if s > 0 else 0.0)
        except Exception:
            boxes.append(0.0)
    return {
        "giou": round(float(np.mean(ious)), 4),
        "p50": round(float(np.mean(np.array(ious) > 0.5)), 3),
        "box_giou": round(float(np.mean(boxes)), 4),
        "box_acc50": round(float(np.mean(np.array(boxes) > 0.5)), 3),
        "sample": text[0][:70],
        "truth": cases[0][1].answer[:70],
    }
