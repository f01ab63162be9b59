"""What a process that trains need not load."""

import subprocess
import sys

_TRAIN = """
import sys
import torch
from weights.optimizers import make_optimizer
from weights.recurrent import GRU
GRU(3, 4)(torch.ones(2, 5, 3)).sum().backward()
weight = torch.nn.Parameter(torch.ones(3))
for spec in ("sgd:lr=0.1,momentum=0.9", "adam:lr=0.1"):
    optimizer = make_optimizer(spec, [weight], "client optimizer")
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""


def test_training_does_not_load_the_compiler() -> None:
    """It takes as long as all else of torch; a SuperNode starts a process for every message."""
    subprocess.run([sys.executable, "-c", _TRAIN], check=True)
