"""What glibc keeps of freed memory, in a process of its own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="glibc's allocator alone is told",
)


def test_what_threads_have_freed_serves_all() -> None:
    """Sixteen arrays of 16 MB, each from a thread of its own as Flower fetches them."""
    program = """
import threading
from pathlib import Path
import numpy as np
from settings.memory import share_freed

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def fetch() -> None:
    pieces = [np.ones(4_000_000, np.float32) for _ in range(2)]

share_freed()
before = resident()
for _ in range(8):
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(resident() - before)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(said.stdout) < 40 * 2**20


def test_what_a_clients_step_has_freed_serves_the_next() -> None:
    """28 MB a step, 70,000 pages in ten: without being told glibc gives half of them back and more."""
    program = """
import resource, torch
import client.app

def step() -> None:
    kept = [torch.ones(1_600_000, dtype=kind) for kind in (torch.float32, torch.bfloat16) * 3]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(said.stdout) < 10_000


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no large pages"
)
def test_what_comes_next_may_lie_in_large_pages() -> None:
    program = """
import re
from pathlib import Path
import torch
from settings.memory import keep_freed

keep_freed()
address = torch.ones(4_000_000)[2_000_000].data_ptr()
lines = Path("/proc/self/smaps").read_text()
for start, end, flags in re.findall("^(\\w+)-(\\w+) .*?VmFlags: (.*?)$", lines, re.M | re.S):
    if int(start, 16) <= address < int(end, 16):
        print(flags)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "hg" in said.stdout.split()
