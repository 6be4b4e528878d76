"""Where a checkpoint says how frames of videos are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_video_config(folder: Path) -> Mapping[str, Any]:
    """The config of the checkpoint's video processor, the image processor's if it has none of its own.

    Source: `BaseVideoProcessor.get_video_processor_dict` in transformers 5.23, whose class needs torch.
    """
    names = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    configs: dict[str, dict[str, Any]] = {
        name: json.loads((folder / name).read_text(encoding="utf-8"))
        for name in names
        if (folder / name).exists()
    }
    nested = configs.pop(names[0], {}).get("video_processor")
    return nested or next(iter(configs.values()), {})
