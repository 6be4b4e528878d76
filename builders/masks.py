"""Who sees whom in a decoder where that is more than the order of the tokens.

Dimension letters: B rows, S new tokens per row, C cache capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from builders.modules import Op

if TYPE_CHECKING:
    from builders.decoder import DecoderConfig


def masks(
    op: Op,
    config: DecoderConfig,
    write_indices: ir.Value,
    kv_lengths: ir.Value,
    is_image: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Bool [B, 1, S, C], without a window and with it.

    `is_image` [B, S] says which new tokens are of images.

    Source: `create_masks_for_vision_model` in transformers 5.23 `modeling_gemma3.py`: a token sees what comes
    before it and all of its own image; a window is cut out of that.
    """
    num_tokens = op.Shape(is_image, start=1, end=2)  # [1]
    key = op.initializer(ir.tensor(np.arange(config.max_model_len)), name="cache_positions")
    start = op.Unsqueeze(write_indices, [1])  # [B, 1]
    query = op.Add(start, op.Slice(key, [0], num_tokens))
    query = op.Unsqueeze(query, [1, 3])  # [B, 1, S, 1]
    mask = op.LessOrEqual(key, query)  # [B, 1, S, C]
    if config.sees_whole_images:
        # The number of the image each new token belongs to; images come whole, so no image begins
        # before the new tokens.
        before = op.Slice(
            op.Pad(op.Cast(is_image, to=ir.DataType.INT64), [0, 1, 0, 0]), [0], [-1], [1]
        )
        begins = op.And(is_image, op.Equal(before, 0))
        number = op.CumSum(op.Cast(begins, to=ir.DataType.INT64), 1)
        query_image = op.Unsqueeze(op.Where(is_image, number, -1), [1, 3])
        new = op.Sub(key, start)  # [B, C], place among the new tokens
        is_new = op.And(op.GreaterOrEqual(new, 0), op.Less(new, num_tokens))
        place = op.Min(op.Max(new, 0), op.Sub(num_tokens, 1))
        key_image = op.GatherElements(op.Where(is_image, number, -2), place, axis=1)
        key_image = op.Unsqueeze(op.Where(is_new, key_image, -2), [1, 2])
        mask = op.Or(mask, op.Equal(query_image, key_image))
    is_valid = op.Less(key, op.Unsqueeze(op.Cast(kv_lengths, to=ir.DataType.INT64), [1]))
    mask = op.And(mask, op.Unsqueeze(is_valid, [1, 2]))
    sliding = mask
    if config.sliding_layers:
        sliding = op.And(mask, op.Greater(key, op.Sub(query, config.sliding_window)))
    return mask, sliding
