from __future__ import annotations

import pytest

from benchmarks.worker import Worker, WorkerError


def test_methods_run_on_the_same_object_in_another_process():
    with Worker(list, (1, 2)) as worker:
        worker.call("append", 3)
        assert worker.call("count", 3) == 1
        assert worker.call("__len__") == 3


def test_error_of_a_call_comes_back_and_the_worker_goes_on():
    with Worker(list) as worker:
        with pytest.raises(WorkerError, match="IndexError: pop from empty list"):
            worker.call("pop")
        assert worker.call("__len__") == 0


def test_object_that_cannot_be_made_is_reported():
    with pytest.raises(WorkerError, match="ValueError"):
        Worker(int, "no number")


def test_worker_can_be_closed_twice():
    worker = Worker(list)
    worker.close()
    worker.close()
