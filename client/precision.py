"""`--precision`: the number format that local training multiplies in."""

import torch
from torch import Tensor, nn


def outputs_of(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """A model's outputs in training.

    With `bf16` torch's autocast has convolutions, dense layers and the GRU's recurrence multiply in
    bfloat16, forward and backward; sums are kept in float32. The outputs are cast back, so that
    loss and metrics are float32, as are the weights, the gradients and whatever leaves the client.

    Args:
        model: Float32.
        inputs: What the model takes.
        precision: `float32` or `bf16`.
    """
    if precision == "float32":
        outputs: Tensor = model(inputs)
        return outputs
    # Autocast keeps its copies of the weights until the context ends: one context for each step.
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = model(inputs)
    return outputs.float()
