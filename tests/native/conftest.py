"""A library small enough to compile in a moment, with the interface that the loader expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.native import build, decoder, library


@pytest.fixture(autouse=True)
def threads_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small use all threads too, so that the team is tested."""
    monkeypatch.setattr(decoder, "WORTH_A_THREAD", 1)


SHARED = """
#define EXPORT extern "C" __attribute__((visibility("default")))

// The same function in each clone. The instructions of the copy that the linker keeps are told.
__attribute__((noinline)) inline int instructions_of_the_copy() {
#if defined(__AVX512F__)
    return 512;
#elif defined(__AVX2__)
    return 256;
#else
    return 128;
#endif
}
"""

KERNELS = """
#include "shared.h"

namespace STEPWELL_ISA {
int shared_copy() { return instructions_of_the_copy(); }
}
"""

DISPATCH = """
#include "shared.h"
#include <string.h>

namespace baseline { int shared_copy(); }

static const char *const names[] = {
#ifdef STEPWELL_HAS_AVX2
    "avx2",
#endif
    "baseline",
};
static const char *selected = "baseline";
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*thread_num)();
static int (*num_threads)();

EXPORT int stepwell_abi() { return @ABI@; }
EXPORT const char *stepwell_instruction_set() { return selected; }
EXPORT int shared_copy() { return baseline::shared_copy(); }

EXPORT int stepwell_select(const char *wanted) {
    for (const char *name : names)
        if (*wanted == 0 || strcmp(name, wanted) == 0) {
            selected = name;
            return 0;
        }
    return -1;
}

EXPORT void stepwell_use_openmp(void *first, void *second, void *third) {
    parallel = (decltype(parallel))first;
    thread_num = (decltype(thread_num))second;
    num_threads = (decltype(num_threads))third;
}

struct Sum { long total, size; };

static void add(void *data) {
    Sum *sum = (Sum *)data;
    const int size = parallel ? num_threads() : 1;
    for (long i = parallel ? thread_num() : 0; i < 1000; i += size)
        __atomic_fetch_add(&sum->total, i, __ATOMIC_RELAXED);
    __atomic_store_n(&sum->size, size, __ATOMIC_RELAXED);
}

// 0 + 1 + ... + 999, and in millions the number of threads that took part.
EXPORT long sum_on(int threads) {
    Sum sum = {0, 0};
    if (threads > 1) parallel(add, &sum, threads, 0);
    else { add(&sum); sum.size = 1; }
    return sum.total + 1000000 * sum.size;
}
"""


def write_sources(folder: Path, *, abi: int = library.ABI, kernels: str = KERNELS) -> Path:
    """The folder, with the sources of the small library in it."""
    folder.mkdir(parents=True)
    (folder / "shared.h").write_text(SHARED)
    (folder / "kernels.cpp").write_text(kernels)
    (folder / "dispatch.cpp").write_text(DISPATCH.replace("@ABI@", str(abi)))
    return folder


@pytest.fixture(scope="session")
def write():
    """Writes the sources of the small library to a folder."""
    return write_sources


@pytest.fixture(scope="session")
def compiler() -> build.Compiler:
    """The compiler that is here; tests that need one are skipped where there is none."""
    try:
        return build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def made(compiler: build.Compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small library, compiled; to be read only."""
    folder = tmp_path_factory.mktemp("native")
    target = folder / build.LIBRARY
    report = build.build(write_sources(folder / "source"), target)
    assert report.built, report.log
    return target
