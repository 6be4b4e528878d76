"""The machine that the other tests of this folder run on, as `triton-vlm doctor` sees it."""

from __future__ import annotations

import json
import subprocess
import sys


def test_doctor_sees_the_gpu(record_property) -> None:
    command = [sys.executable, "-m", "triton_vlm", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    sys.stdout.write(result.stdout)
    report = json.loads(result.stdout)
    record_property("doctor", report)
    assert report["gpus"]
    lines = [check for check in report["checks"] if check["name"] == "GPU 0"]
    assert lines[0]["status"] in ("OK", "WARN")
    assert report["gpus"][0]["name"] in lines[0]["finding"]
