"""Engine runtimes: the name in a manifest to the class that loads its graphs."""

from __future__ import annotations
