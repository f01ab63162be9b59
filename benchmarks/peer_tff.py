"""TensorFlow Federated as a peer: run by TFF_PYTHON, trains as many rounds as a line says.

Arguments: task (emnist_lr or emnist_cnn), HDF5 file, local epochs, clients. Prints `ready`, then seconds.
"""

import collections
import sys
import time
from typing import Any

import h5py
import tensorflow as tf
import tensorflow_federated as tff

TASK, PATH, EPOCHS, CLIENTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
L = tf.keras.layers


def dataset(client: h5py.Group) -> Any:
    pixels, labels = client["pixels"][()], client["label"][()]
    pixels = pixels.reshape(len(pixels), 784) if TASK == "emnist_lr" else pixels[..., None]
    examples = collections.OrderedDict(x=pixels, y=labels)
    data = tf.data.Dataset.from_tensor_slices(examples)
    return data.repeat(EPOCHS).shuffle(100).batch(20)


def network() -> list[Any]:
    if TASK == "emnist_lr":
        return [L.InputLayer((784,)), L.Dense(10, kernel_initializer="zeros")]
    same = {"padding": "same"}
    return [
        L.InputLayer((28, 28, 1)),
        L.Conv2D(32, 5, activation="relu", **same),
        L.MaxPool2D(2, 2, **same),
        L.Conv2D(64, 5, activation="relu", **same),
        L.MaxPool2D(2, 2, **same),
        L.Flatten(),
        L.Dense(512, activation="relu"),
        L.Dense(10),
    ]


def model() -> Any:
    return tff.learning.models.from_keras_model(
        tf.keras.Sequential(network()),
        input_spec=DATA[0].element_spec,
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )


with h5py.File(PATH) as file:
    DATA = [dataset(file["examples"][name]) for name in sorted(file["examples"])[:CLIENTS]]
process = tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.02),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
)
state = process.initialize()
print("ready", flush=True)
for rounds in sys.stdin:
    started = time.perf_counter()
    for _ in range(int(rounds)):
        state = process.next(state, DATA).state
    print(time.perf_counter() - started, flush=True)
