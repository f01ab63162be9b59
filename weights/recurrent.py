"""Keras's recurrent layers: both GRU conventions, its activations, states kept across calls.

`torch.nn.GRU` cannot stand in for them: Keras's original GRU applies the reset gate before the
recurrent product, and the `dickens_rnn` checkpoints hold such a cell.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settings.errors import InputError, counted, unknown
from weights import layers
from weights.gru_function import GRUFunction, GRUSpec, gru_forward
from weights.gru_steps import ACTIVATIONS


class _Recurrent(nn.Module):
    """What the GRU and the LSTM share: parameters, the order of time, states across calls."""

    gates: ClassVar[int]
    states_per_layer: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        use_bias: bool,
        return_sequences: bool,
        stateful: bool,
        go_backwards: bool,
    ) -> None:
        super().__init__()
        self.units = units
        self.return_sequences = return_sequences
        self.stateful = stateful
        self.go_backwards = go_backwards
        # Not a buffer: it is neither saved nor averaged nor counted among a model's weights.
        self.states: tuple[Tensor, ...] | None = None
        self.weight_ih = nn.Parameter(torch.empty(self.gates * units, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * units, units))
        self.bias_ih = nn.Parameter(torch.zeros(self.gates * units)) if use_bias else None
        # Keras's defaults; both are over all gates together.
        nn.init.xavier_uniform_(self.weight_ih)
        nn.init.orthogonal_(self.weight_hh)

    def run(
        self, x: Tensor, states: tuple[Tensor, ...], table: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All outputs (time, batch, units), and the last states, for `forward`'s `x`, time first."""
        raise NotImplementedError

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """Runs the layer.

        Args:
            x: (batch, time, input), floating point; with `table` ids of its rows, (batch, time).
            table: An embedding's weight, (symbols, input).

        Returns:
            (batch, time, units), or without `return_sequences` the last step's (batch, units). With
            `go_backwards` the steps are in the order they were taken, last first, as in Keras.
        """
        batch = x.shape[0]
        if self.states is None:
            states = (self.weight_hh.new_zeros(batch, self.units),) * self.states_per_layer
        elif self.states[0].shape[0] == batch:
            states = tuple(state.to(self.weight_hh) for state in self.states)
        else:
            raise InputError(
                f"a stateful {type(self).__name__} that holds the states of "
                f"{counted(self.states[0].shape[0], 'sequence')} got a batch of {batch}: "
                "call reset_states before changing the batch size"
            )
        sequence = (x.flip(1) if self.go_backwards else x).transpose(0, 1).contiguous()
        outputs, states = self.run(sequence, states, table)
        if self.stateful:
            self.states = tuple(state.detach().clone() for state in states)
        return outputs.transpose(0, 1) if self.return_sequences else outputs[-1]


class GRU(_Recurrent):
    """Keras's GRU, `keras.layers.GRU`, with its parameters laid out as `torch.nn.GRU`'s.

    With s and a the recurrent and the output activation, a step takes the state h to
        z = s(x Wz + h Uz + bz)
        r = s(x Wr + h Ur + br)
        n = a(x Wn + (r * h) Un + bn),          or with `reset_after`
        n = a(x Wn + bn + r * (h Un + cn)),     where z and r have a second bias too
        h' = z * h + (1 - z) * n
    (Keras calls n `hh`; source: `GRUCell.call` in keras/src/layers/rnn/gru.py.) With `reset_after`,
    tanh and sigmoid this is the cell of cuDNN and `torch.nn.GRU`.

    Args:
        input_size: Features of the input.
        units: Features of the state.
        reset_after: Apply the reset gate after the recurrent product (Keras 2's and 3's default)
            rather than before (Keras 1's, and that of files that do not say).
        activation: A name in `ACTIVATIONS`.
        recurrent_activation: A name in `ACTIVATIONS`; `hard_sigmoid` is Keras 2's,
            clip(0.2 x + 0.5, 0, 1), and `hard_sigmoid_v3` Keras 3's, relu6(x + 3) / 6.
        use_bias: Whether there are biases.
        return_sequences: Give every step's state, not just the last.
        stateful: Start each call from the previous call's last state, as a constant.
        go_backwards: Take the steps from the last to the first.

    Attributes:
        weight_ih: (3 * units, input_size), rows in the order r, z, n.
        weight_hh: (3 * units, units).
        bias_ih: (3 * units,), or None without `use_bias`.
        bias_hh: (3 * units,), or None without `use_bias` and `reset_after`.
    """

    gates = 3
    states_per_layer = 1

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        reset_after: bool = False,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        use_bias: bool = True,
        return_sequences: bool = True,
        stateful: bool = False,
        go_backwards: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            units,
            use_bias=use_bias,
            return_sequences=return_sequences,
            stateful=stateful,
            go_backwards=go_backwards,
        )
        two_biases = use_bias and reset_after
        self.bias_hh = nn.Parameter(torch.zeros(3 * units)) if two_biases else None
        self.spec = GRUSpec(
            reset_after,
            _known("recurrent activation", recurrent_activation),
            _known("activation", activation),
        )

    def run(
        self, x: Tensor, states: tuple[Tensor, ...], table: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the base class; the one state is h."""
        if x.is_cuda and self.spec == GRUSpec(reset_after=True, gate="sigmoid", candidate="tanh"):
            return self.run_fused(_rows(x, table), states)
        dtype = self.weight_hh.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        projected = self._projected(x, table)
        given = (projected, states[0], self.weight_hh, self.bias_hh, self.spec, dtype)
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():
                outputs: Tensor = GRUFunction.apply(*given)  # type: ignore[no-untyped-call]
            else:
                outputs = gru_forward(*given)[0][1:]
        return outputs, (outputs[-1],)

    def run_fused(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`run` by torch's own cell, which on a GPU is cuDNN's; tried on a CPU only."""
        weights: list[Tensor] = [self.weight_ih, self.weight_hh]
        if self.bias_ih is not None and self.bias_hh is not None:
            weights += [self.bias_ih, self.bias_hh]
        outputs, last = torch.gru(
            x,
            states[0].unsqueeze(0),
            weights,
            has_biases=len(weights) > 2,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=False,
        )
        return outputs, (last[0],)

    def _projected(self, x: Tensor, table: Tensor | None) -> Tensor:
        """The input's part of all pre-activations, (time, batch, 3 * units), in memory of its own.

        Of a text each symbol is projected once, and not each place where it stands.
        """
        if table is not None and len(table) <= x.numel():
            with torch.autocast(x.device.type, enabled=False):
                return F.embedding(x, F.linear(table, self.weight_ih, self.bias_ih))
        projected = F.linear(_rows(x, table), self.weight_ih, self.bias_ih)
        return projected.to(self.weight_hh)


class LSTM(_Recurrent):
    """Keras's LSTM, `keras.layers.LSTM`, with its parameters laid out as `torch.nn.LSTM`'s.

    With s and a the recurrent and the output activation, a step takes the state h and the cell c to
        i, f, o = s(x W + h U + b), each with its own W, U and b
        g = a(x Wg + h Ug + bg)
        c' = f * c + i * g
        h' = o * a(c')
    (source: `LSTMCell.call` in keras/src/layers/rnn/lstm.py).

    Args:
        input_size: Features of the input.
        units: Features of the state.
        activation: A name in `ACTIVATIONS`.
        recurrent_activation: A name in `ACTIVATIONS`, see `GRU`.
        use_bias: Whether there is a bias.
        return_sequences: Give every step's state, not just the last.
        stateful: Start each call from the previous call's last state, as a constant.
        go_backwards: Take the steps from the last to the first.

    Attributes:
        weight_ih: (4 * units, input_size), rows in the order i, f, g, o.
        weight_hh: (4 * units, units).
        bias_ih: (4 * units,), or None without `use_bias`.
    """

    gates = 4
    states_per_layer = 2

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        use_bias: bool = True,
        return_sequences: bool = True,
        stateful: bool = False,
        go_backwards: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            units,
            use_bias=use_bias,
            return_sequences=return_sequences,
            stateful=stateful,
            go_backwards=go_backwards,
        )
        self.gate = _known("recurrent activation", recurrent_activation)
        self.candidate = _known("activation", activation)

    def run(
        self, x: Tensor, states: tuple[Tensor, ...], table: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the base class; the states are h and c."""
        x = _rows(x, table)
        h, c = states
        if (self.gate, self.candidate) == ("sigmoid", "tanh"):
            # torch's own, by oneDNN or cuDNN, has two biases.
            weights: list[Tensor] = [self.weight_ih, self.weight_hh]
            if self.bias_ih is not None:
                weights += [self.bias_ih, torch.zeros_like(self.bias_ih)]
            outputs, h, c = torch.lstm(
                x,
                (h.unsqueeze(0), c.unsqueeze(0)),
                weights,
                has_biases=self.bias_ih is not None,
                num_layers=1,
                dropout=0.0,
                train=self.training,
                bidirectional=False,
                batch_first=False,
            )
            return outputs, (h[0], c[0])
        gate, candidate = (layers.ACTIVATIONS[name] for name in (self.gate, self.candidate))
        steps = []
        for projected in F.linear(x, self.weight_ih, self.bias_ih):
            i, f, g, o = (projected + F.linear(h, self.weight_hh)).chunk(4, dim=1)
            i, f, o = gate(i), gate(f), gate(o)
            c = f * c + i * candidate(g)
            h = o * candidate(c)
            steps.append(h)
        return torch.stack(steps), (h, c)


def reset_states(module: nn.Module) -> None:
    """Makes every stateful layer in `module` start from zero again."""
    for layer in module.modules():
        if isinstance(layer, _Recurrent):
            layer.states = None


def _rows(x: Tensor, table: Tensor | None) -> Tensor:
    """What a recurrent layer is given: features, or the rows of a table that `x` names."""
    return x if table is None else F.embedding(x, table)


def _known(kind: str, name: str) -> str:
    """`name` if an activation is called so, otherwise an error that lists those there are."""
    if name not in ACTIVATIONS:
        raise unknown(kind, name, ACTIVATIONS)
    return name
