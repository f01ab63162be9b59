"""Keras's side of `gru.py`, for an interpreter with TensorFlow 2: runs the step that a line on stdin names.

Answers with the names of its steps, and then with the seconds of each step asked for.
"""

import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

batch, steps, symbols, features, units, threads = map(int, sys.argv[1:])
tf.config.threading.set_intra_op_parallelism_threads(threads)
text = np.random.default_rng(0).integers(symbols, size=(batch, steps + 1))
inputs, targets = tf.constant(text[:, :-1]), tf.constant(text[:, 1:])


def make_model(reset_after: bool) -> Any:
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Embedding(symbols, features, batch_input_shape=[batch, None]),
            tf.keras.layers.GRU(units, return_sequences=True, reset_after=reset_after),
            tf.keras.layers.Dense(symbols),
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.5), loss)
    return model


def graph_step(model: Any) -> Any:
    """What TFF makes of a model: one graph of forward pass, gradients and plain SGD."""

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = model.compiled_loss(targets, model(inputs, training=True))
        variables = model.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.5 * tf.convert_to_tensor(gradient))
        return loss

    return lambda: step().numpy()


models = {flag: make_model(flag) for flag in (False, True)}
contenders = {
    f"Keras reset_after={flag}": lambda model=model: model.train_on_batch(inputs, targets)
    for flag, model in models.items()
}
contenders["as in TFF reset_after=False"] = graph_step(make_model(False))
print(",".join(contenders), flush=True)
for line in sys.stdin:
    started = time.perf_counter()
    contenders[line.strip()]()
    print(time.perf_counter() - started, flush=True)
