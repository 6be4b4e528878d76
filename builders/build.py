"""`python builders/build.py --model X`: a Hugging Face checkpoint becomes a Triton model repository."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builders.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
