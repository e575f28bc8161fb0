"""The thread team through the executor: every thread runs, barriers order memory, strangers on a core do no harm."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import build_library

from echoc import _native

SOURCE = """
#include <cstdint>
#include "kernels/cpu/balance.h"
// args: values i64 [T, nthreads], zeros; each thread adds the sum of the row before to its own place: a race shows, and
// so does a task done twice.
ECHOC_EXPORT void relay(const echoc::Call* c) {
  auto* values = static_cast<int64_t*>(c->args[0]);
  int64_t row = reinterpret_cast<int64_t>(c->args[1]);
  int64_t sum = 1;
  for (int i = 0; row > 0 && i < c->nthreads; ++i) sum += values[(row - 1) * c->nthreads + i];
  values[row * c->nthreads + c->tid] += sum % 1000003;
}
ECHOC_EXPORT void scratch(const echoc::Call* c) {
  auto* out = static_cast<int64_t*>(c->args[0]);
  *reinterpret_cast<int64_t*>(c->scratch) = c->tid;
  out[c->tid] = reinterpret_cast<int64_t>(c->scratch) % 64 + *reinterpret_cast<int64_t*>(c->scratch);
}
// args: values i64 [ROWS, 999], row, items; one is added for each item of the row, by threads of unequal speed.
ECHOC_EXPORT void unequal(const echoc::Call* c) {
  const int64_t row = reinterpret_cast<int64_t>(c->args[1]);
  auto* values = static_cast<int64_t*>(c->args[0]) + row * 999;
  echoc::share_out(*c, reinterpret_cast<int64_t>(c->args[2]), 3, [&](echoc::Range range) {
    for (int64_t i = range.begin; i < range.end; ++i) {
      values[i] += 1;
      for (volatile int64_t wait = 0; wait < (c->tid + row) % 3 * 200; wait = wait + 1) {
      }
    }
  });
}
"""
ROWS = 60


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    build_library(folder, SOURCE)
    return folder / "toy.so"


def make_executor(library: Path, num_threads: int) -> tuple[Any, np.ndarray]:
    executor = _native.Executor(str(library), num_threads)
    scratch = np.zeros(64 * (num_threads + 1), np.uint8)
    base = -(-scratch.ctypes.data // 64) * 64
    executor.bind(0, base, 64, [], [], 1)  # the arena begins at 0, so that its offsets arrive as numbers
    executor.add_variant([("relay", True, False, [("port", 0), ("arena", row)]) for row in range(ROWS)])
    executor.add_variant([("scratch", True, False, [("port", 0)])])
    return executor, scratch


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_items_are_done_once_whoever_does_them(library: Path, num_threads: int) -> None:
    executor, _scratch = make_executor(library, num_threads)
    counts = [(row * 37) % 1000 for row in range(ROWS)]
    variant = executor.add_variant(
        [("unequal", row % 3 == 0, False, [("port", 0), ("arena", row), ("arena", n)]) for row, n in enumerate(counts)]
    )
    values = np.zeros((ROWS, 999), np.int64)
    for _ in range(20):
        executor.step(variant, [], [values])
    np.testing.assert_array_equal(values, 20 * (np.arange(999) < np.array(counts)[:, None]))


def expected(num_threads: int) -> np.ndarray:
    rows = [np.ones(num_threads, np.int64)]
    for _ in range(ROWS - 1):
        rows.append(np.full(num_threads, (1 + rows[-1].sum()) % 1000003))
    return np.array(rows)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_barriers_order_the_launches(library: Path, num_threads: int) -> None:
    executor, _scratch = make_executor(library, num_threads)
    assert executor.num_threads == num_threads
    wanted = expected(num_threads)
    for pause in (0, 0, 0, 0.001, 0.01):  # the workers spin, then park
        values = np.zeros((ROWS, num_threads), np.int64)
        time.sleep(pause)
        executor.step(0, [], [values])
        np.testing.assert_array_equal(values, wanted)


def test_every_thread_has_its_own_aligned_scratch(library: Path) -> None:
    executor, _scratch = make_executor(library, 4)
    values = np.full(4, -1, np.int64)
    executor.step(1, [], [values])
    assert values.tolist() == [0, 1, 2, 3]


def spin_until(stop: Any) -> None:
    while not stop.is_set():
        for _ in range(100000):
            pass


def test_strangers_on_every_core_do_not_disturb_it(library: Path) -> None:
    """Tasks of threads that do not come are done by those that do, each once."""
    executor, _scratch = make_executor(library, 2)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    strangers = [context.Process(target=spin_until, args=(stop,)) for _ in range(os.cpu_count() or 1)]
    for stranger in strangers:
        stranger.start()
    try:
        for _ in range(20):
            values = np.zeros((ROWS, 2), np.int64)
            executor.step(0, [], [values])
            np.testing.assert_array_equal(values, expected(2))
    finally:
        stop.set()
        for stranger in strangers:
            stranger.join()


def test_other_python_threads_run_during_a_step(library: Path) -> None:
    executor, _scratch = make_executor(library, 2)
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    values = np.zeros((ROWS, 2), np.int64)
    for _ in range(200):
        executor.step(0, [], [values])
    done.set()
    thread.join()
    assert counted > 0


def test_a_forked_child_is_told_to_load_again(library: Path) -> None:
    executor, _scratch = make_executor(library, 2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            executor.step(0, [], [np.zeros((ROWS, 2), np.int64)])
            message = "no error"
        except RuntimeError as error:
            message = str(error)
        os.write(writer, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert "load the artifact again" in os.read(reader, 1000).decode()


def test_wrong_launches_are_refused(library: Path) -> None:
    executor, _scratch = make_executor(library, 1)
    with pytest.raises(RuntimeError, match="no kernel named absent"):
        executor.add_variant([("absent", True, False, [])])
    with pytest.raises(IndexError, match="port 1 of 1"):
        executor.add_variant([("relay", True, False, [("port", 1)])])
    with pytest.raises(ValueError, match="unknown kind"):
        executor.add_variant([("relay", True, False, [("stack", 1)])])
    with pytest.raises(IndexError, match="no such variant"):
        executor.step(9, [], [np.zeros(1)])
    with pytest.raises(ValueError, match="one array per port"):
        executor.step(0, [], [])
