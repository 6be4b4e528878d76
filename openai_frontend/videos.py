"""How many frames of a request's videos are looked at: what the client wants, within the server's limits."""

from __future__ import annotations

from typing import Any

from openai_frontend.protocol.prompt_options import MediaIoKwargs
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError


def set_sampling(prompt: dict[str, Any], options: MediaIoKwargs | None, settings: Settings) -> None:
    """Add `num_frames` and `fps` to the video parts of a PROMPT JSON, which is changed.

    What the client leaves open is up to the preprocess stage: two frames of a second.

    Raises:
        InvalidRequestError: there are more videos than the server takes, or more frames in one.
    """
    wanted = options.video if options else None
    num_frames, fps = (wanted.num_frames, wanted.fps) if wanted else (None, None)
    most, num_videos = settings.max_video_frames, 0
    for i, message in enumerate(prompt["messages"]):
        content = message["content"]
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] != "video":
                continue
            num_videos += 1
            param = f"messages[{i}].content[{j}].video_url.url"
            if num_videos > settings.max_videos:
                raise InvalidRequestError(
                    f"At most {settings.max_videos} video(s) may be provided in one request.",
                    param=param,
                )
            if "is_frames" not in part:
                part["num_frames"] = min(num_frames or most, most)
                if num_frames is not None:
                    part["fps"] = None
            elif part["num_frames"] > most:
                raise InvalidRequestError(
                    f"A video may have at most {most} frames, but got {part['num_frames']}; leave some out.",
                    param=param,
                )
            if fps is not None:
                part["fps"] = fps
