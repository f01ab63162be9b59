"""PyTorch's OpenMP threads: importing this module, before torch is loaded, lets them sleep after a short wait.

Threads that spin make every process of a busy machine four to ten times slower. Threads that sleep at once wake up late
for the next of many short operations: steps of the CNN on two threads take a fifth longer. A thousand turns of
libgomp's loop, some ten microseconds, cost a busy machine a tenth at most. Flower starts the apps itself, so this is
not left to whoever starts them; who has set `OMP_WAIT_POLICY` is left alone.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
