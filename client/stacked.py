"""Models of many clients as one: their weights stacked, and a layer applied to all of them at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weights import image_layers, layers
from weights.keras import KerasModel

# Layers without weights that treat every row of a batch by itself.
_ROW_BY_ROW = (
    layers.Activate,
    layers.ReLU,
    layers.Reshape,
    image_layers.MaxPooling2D,
    image_layers.AveragePooling2D,
    image_layers.GlobalAveragePooling2D,
    nn.Flatten,
    nn.Identity,
    nn.ReLU,
    nn.Sigmoid,
    nn.Tanh,
)
_DENSE = (layers.Dense, nn.Linear)


@dataclass(frozen=True)
class Stacked:
    """A chain of layers, each with the prefix of its state names."""

    layers: Sequence[tuple[str, nn.Module]]

    @property
    def units(self) -> int:
        """Values that one row gives: those of the last layer that has weights."""
        dense = [layer for _, layer in self.layers if isinstance(layer, _DENSE)]
        return int(dense[-1].weight.shape[0]) if dense else 1

    def __call__(self, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Apply every client's model to its own batch.

        Args:
            inputs: (clients, batch, ...).
            weights: By state name, (clients, ...) each.

        Returns:
            (clients, batch, ...).
        """
        x = inputs
        for prefix, layer in self.layers:
            if isinstance(layer, _DENSE):
                x = _dense(x, weights[f"{prefix}weight"], weights.get(f"{prefix}bias"))
                x = layer.activation(x) if isinstance(layer, layers.Dense) else x
            else:
                y = layer(x.flatten(0, 1))
                x = y.reshape(*x.shape[:2], *y.shape[1:])
        return x


def stacked(model: nn.Module) -> Stacked | None:
    """The model for many clients at once, or None for one that must be trained client by client.

    By what it is made of: a chain of layers known to be pure functions of weights and rows. Everything
    else, as randomness, running statistics, recurrent state, code of a user's own, is None.
    """
    chain = _chain(model, "")
    if chain is None or len({id(layer) for _, layer in chain}) < len(chain):
        return None
    return Stacked(chain)


def _chain(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) in (KerasModel, nn.Sequential):
        chain: list[tuple[str, nn.Module]] = []
        # Not named_children, which leaves out a layer that comes twice.
        for name, child in module._modules.items():
            part = _chain(child, f"{prefix}{name}.") if child is not None else None
            if part is None:
                return None
            chain += part
        return chain
    if isinstance(module, nn.Flatten) and module.start_dim != 1:
        return None
    # Exactly these classes: a subclass may do anything.
    return [(prefix, module)] if type(module) in _ROW_BY_ROW + _DENSE else None


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(clients, batch, ..., inputs), (clients, units, inputs) to (clients, batch, ..., units)."""
    # The weight on the left: its gradient is then a product along the rows' own memory, five times faster.
    columns = x.flatten(1, -2).mT
    added = weight.new_zeros(()) if bias is None else bias.unsqueeze(-1)
    y = torch.baddbmm(added, weight, columns)
    return y.mT.reshape(*x.shape[:-1], -1)
