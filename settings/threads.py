"""PyTorch's OpenMP threads: importing this module, before torch is loaded, lets them sleep while they wait.

Threads that spin make every process of a busy machine ten times slower, and cost nothing to do without on a
quiet one. Flower starts the apps itself, so this is not left to whoever starts them.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
