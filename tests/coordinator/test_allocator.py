"""What the C library is told, in processes of their own: such settings last."""

import platform
import subprocess
import sys

import pytest
import torch

from coordinator import allocator

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have no heaps for each thread"
)

THREADS_THAT_ALLOCATE = """
import ctypes, os, sys, threading
from coordinator import allocator

if sys.argv[1] == "few":
    assert allocator.use_few_heaps({})
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
met = threading.Barrier(8)

def allocate():
    met.wait()
    assert libc.malloc(5000)
    met.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""

FREED_BLOCKS = """
import ctypes, os
from coordinator import allocator
from share_dist.wire import buffers  # a coordinator has it long before

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [libc.malloc(2**16) for _ in range(1024)]
for block in blocks:
    libc.memset(block, 1, 2**16)
for block in blocks[:-1]:
    libc.free(block)
before = resident()
assert allocator.give_back()
print(before, resident())
"""


def _num_heaps(how):
    command = [sys.executable, "-c", THREADS_THAT_ALLOCATE, how]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return told.stdout.count("<heap nr")


def test_threads_share_two_heaps():
    """Eight threads that allocate at once have two heaps between them, not one each."""
    assert _num_heaps("few") == 2
    assert _num_heaps("as it is") > 2


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}],
    ids=["variable", "tunable"],
)
def test_what_the_environment_says_of_heaps_stays(environment):
    """Who starts the process may know better."""
    assert not allocator.use_few_heaps(environment)


def test_pages_of_freed_blocks_go_back_to_the_system():
    """Small blocks under one that is still in use stay with the C library until they are given back."""
    command = [sys.executable, "-c", FREED_BLOCKS]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, told.stdout.split())
    assert before - after > 48 * 2**20


PRODUCTS_IN_MANY_THREADS = """
import os, sys, threading
from pathlib import Path
from coordinator import allocator

allocator.use_few_heaps({})
if sys.argv[1] == "none":
    allocator.keep_no_product_buffers()
import torch

torch.set_num_threads(1)
columns = torch.ones(512, 64)
met = threading.Barrier(33)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def multiply():
    columns.T @ columns
    columns.double().T @ columns.double()
    met.wait()
    met.wait()

columns.T @ columns, columns.double().T @ columns.double()
before = resident()
threads = [threading.Thread(target=multiply) for _ in range(32)]
for thread in threads:
    thread.start()
met.wait()
allocator.give_back()
print(resident() - before)
met.wait()
"""


@pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="torch multiplies without MKL here"
)
def test_threads_that_multiplied_keep_no_buffers():
    """Thirty-two threads that each multiplied once hold megabytes less than MKL would keep for them."""
    assert _grown("none") < _grown("as it is") - 4 * 2**20


def test_what_the_environment_says_of_buffers_stays():
    """Who starts the process may know better."""
    environment = {"MKL_DISABLE_FAST_MM": "0"}
    allocator.keep_no_product_buffers(environment)
    assert environment == {"MKL_DISABLE_FAST_MM": "0"}


def _grown(how):
    command = [sys.executable, "-c", PRODUCTS_IN_MANY_THREADS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
