"""The model's forward pass for training: the modules of Hugging Face, batched for speed.

Hugging Face's vision tower loops over the windows of all images; here pictures of one size run as
one batch with a mask between windows. The language model runs on rows with branches, which need
a mask of their own. `check_against_hugging_face` shows that the results are the same.
"""

# N pictures, P patches of a picture, B rows, T tokens, C channels

from __future__ import annotations

import numpy as np
import torch
from batches import IMAGE_PAD, Batch, Row
from checkpoint import PREPROCESSOR
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

PATCH, MERGE = PREPROCESSOR["patch_size"], PREPROCESSOR["merge_size"]


def pictures_to_patches(pictures: list[np.ndarray]) -> Tensor:
    """Cut pictures of one size into patches, as the preprocessor orders them.

    Args:
        pictures: uint8 [height, width, 3] each.

    Returns:
        float32 [N, P, 3, 14, 14]; the preprocessor repeats each patch in time.
    """
    mean = torch.tensor(PREPROCESSOR["image_mean"]).view(3, 1, 1)
    std = torch.tensor(PREPROCESSOR["image_std"]).view(3, 1, 1)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    pixels = (pixels / 255 - mean) / std
    num, _, height, width = pixels.shape
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    pixels = pixels.view(num, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7)
    return pixels.reshape(num, -1, 3, PATCH, PATCH)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), -1)
    return states * cos + turned * sin


def _norm(module: nn.Module, states: Tensor) -> Tensor:
    return functional.rms_norm(states, (states.shape[-1],), module.weight, module.variance_epsilon)


def _mlp(module: nn.Module, states: Tensor) -> Tensor:
    return module.down_proj(functional.silu(module.gate_proj(states)) * module.up_proj(states))


def encode_pictures(
    model: Qwen2_5_VLForConditionalGeneration, pictures: list[np.ndarray]
) -> list[Tensor]:
    """Run the vision tower.

    Returns:
        float32 [P / 4, C] for each picture.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(i)
    embeds: list[Tensor] = [torch.empty(0)] * len(pictures)
    for members in groups.values():
        encoded = _encode_group(model.model.visual, [pictures[i] for i in members])
        for i, embed in zip(members, encoded, strict=True):
            embeds[i] = embed
    return embeds


def _encode_group(visual: nn.Module, pictures: list[np.ndarray]) -> Tensor:
    height, width, _ = pictures[0].shape
    grid = torch.tensor([[1, height // PATCH, width // PATCH]])
    index, bounds = get_vision_window_index(grid, MERGE, visual.window_size, PATCH)
    num, unit = len(pictures), MERGE * MERGE

    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames are the same
    states = functional.linear(pictures_to_patches(pictures).flatten(2), weight)
    num_patches, size = states.shape[1:]
    states = states.view(num, -1, unit, size)[:, index].view(num, num_patches, size)
    positions = get_vision_position_ids(grid, MERGE)
    cos, sin = visual.rotary_pos_emb(states, positions)
    cos, sin = (x.view(-1, unit, x.shape[-1])[index].view(num_patches, -1) for x in (cos, sin))

    mask = None
    if len(bounds) > 2:
        window = torch.bucketize(torch.arange(num_patches), bounds[1:], right=True)
        mask = window[:, None] == window[None, :]
    for i, block in enumerate(visual.blocks):
        heads = block.attn.num_heads
        normed = _norm(block.norm1, states)
        qkv = block.attn.qkv(normed).view(num, num_patches, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            _rotate(qkv[0], cos, sin),
            _rotate(qkv[1], cos, sin),
            qkv[2],
            attn_mask=None if i in visual.fullatt_block_indexes else mask,
        )
        attended = attended.transpose(1, 2).reshape(num, num_patches, size)
        states = states + block.attn.proj(attended)
        states = states + _mlp(block.mlp, _norm(block.norm2, states))
    merged = visual.merger.mlp(_norm(visual.merger.ln_q, states).view(num, -1, unit * size))
    return merged[:, torch.argsort(index)]


def rows_to_tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad rows to one length.

    Returns:
        token_ids: int64 [B, T].
        positions: int64 [3, B, T].
        mask: bool [B, 1, T, T], true where a token (third axis) sees another (fourth).
    """
    length = max(len(row.token_ids) for row in rows)
    token_ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(3, len(rows), length, dtype=torch.long)
    branches = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        size = len(row.token_ids)
        token_ids[i, :size] = torch.tensor(row.token_ids)
        positions[:, i, :size] = torch.tensor(row.positions).T
        branches[i, :size] = torch.tensor(row.branches)
    seen = branches[:, None, :]
    mask = ((seen == 0) | (seen == branches[:, :, None])).tril()
    return token_ids, positions, mask[:, None]


def text_states(
    model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], embeds: list[Tensor]
) -> Tensor:
    """Run the language model.

    Returns:
        float32 [B, T, C], the states that `lm_head` turns into logits.
    """
    text = model.model.language_model
    token_ids, positions, mask = rows_to_tensors(rows)
    states = text.embed_tokens(token_ids)
    images = [embeds[i] for row in rows for i in row.pictures]
    if images:
        is_image = (token_ids == IMAGE_PAD)[..., None].expand_as(states)
        states = states.masked_scatter(is_image, torch.cat(images))
    num, length, size = states.shape
    cos, sin = (x[:, None] for x in text.rotary_emb(states, positions))
    bias = torch.zeros(mask.shape).masked_fill_(~mask, -1e9)
    for layer in text.layers:
        attn = layer.self_attn
        normed = _norm(layer.input_layernorm, states)
        query, key, value = (
            proj(normed).view(num, length, -1, attn.head_dim).transpose(1, 2)
            for proj in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        groups = attn.num_key_value_groups
        attended = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, 1),
            value.repeat_interleave(groups, 1),
            attn_mask=bias,
        )
        states = states + attn.o_proj(attended.transpose(1, 2).reshape(num, length, size))
        states = states + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, states))
    return _norm(text.norm, states)


def answer_losses(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, embeds: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]]]:
    """Predict the answers of a batch.

    Args:
        model: the model.
        batch: the batch.
        embeds: of its pictures, from `encode_pictures`.

    Returns:
        losses: float32 [A], the cross entropy of each answer token.
        token_ids: int64 [A], those tokens.
        is_right: bool [A], whether the most likely token is the right one.
        owners: the row of each token and the answer in that row, [A].
    """
    states = text_states(model, batch.rows, embeds)
    at_row, at_token, targets, owners = [], [], [], []
    for i, row in enumerate(batch.rows):
        for j, answer in enumerate(row.answers):
            if answer >= 0:
                at_row.append(i)
                at_token.append(j - 1)
                targets.append(row.token_ids[j])
                owners.append((i, answer))
    logits = model.lm_head(states[at_row, at_token])
    token_ids = torch.tensor(targets)
    losses = functional.cross_entropy(logits, token_ids, reduction="none")
    return losses, token_ids, logits.argmax(-1) == token_ids, owners


@torch.no_grad()
def check_against_hugging_face(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> None:
    """Raise if any branch of the batch gets other logits than from Hugging Face's forward."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        min_pixels=PREPROCESSOR["min_pixels"], max_pixels=PREPROCESSOR["max_pixels"]
    )
    states = text_states(model, batch.rows, encode_pictures(model, batch.pictures))
    for i, row in enumerate(batch.rows):
        images = [Image.fromarray(batch.pictures[j]) for j in row.pictures]
        seen = processor(images=images, return_tensors="pt") if images else {}
        for branch in range(max(row.branches) + 1):
            at = [j for j, b in enumerate(row.branches) if b in (0, branch)]
            if not at:
                continue
            input_ids = torch.tensor([[row.token_ids[j] for j in at]])
            logits = model(
                input_ids=input_ids,
                mm_token_type_ids=(input_ids == IMAGE_PAD).int(),
                attention_mask=torch.ones_like(input_ids),
                **seen,
            ).logits
            error = (model.lm_head(states[i, at]) - logits[0]).abs().max().item()
            if error > 1e-4:
                raise AssertionError(f"row {i}, branch {branch}: off by {error}")
