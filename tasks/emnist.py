"""The digit tasks of TFF's image classification and compression tutorials."""

import json
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.data import Examples, Lazy, Population, Split, open_population
from tasks.metrics import ACCURACY, classification_loss
from tasks.stream import Batch, Prepared
from tasks.task import Task
from weights.keras import build_model


def emnist_lr() -> Task:
    """Softmax regression on 784 pixels, zero-initialised: the image classification tutorial's model."""
    return _digits("emnist_lr", _LINEAR, flatten=True)


def emnist_cnn() -> Task:
    """The compression tutorial's CNN of 1,663,370 parameters on 28 x 28 x 1 images."""
    return _digits("emnist_cnn", _CNN, flatten=False)


def _digits(name: str, layers: list[dict[str, Any]], flatten: bool) -> Task:
    shape = (784,) if flatten else (28, 28, 1)

    def prepare(examples: Examples) -> Prepared:
        """`pixels` (n, 28, 28), ink 0.0 on 1.0, and `label` (n,) -> images and labels."""
        pixels = np.asarray(examples["pixels"], dtype=np.float32)
        images = pixels.reshape(len(pixels), *shape)
        labels = np.asarray(examples["label"], dtype=np.int64)
        return Prepared(torch.from_numpy(images), torch.from_numpy(labels))

    def model() -> nn.Module:
        return build_model(_config(name, layers), logits=True)

    return Task(
        name=name,
        model=model,
        prepare=prepare,
        loss=classification_loss,
        metrics={"accuracy": ACCURACY},
        open=_open_digits_only,
        sample=_open_sample,
        sample_is="synthetic writers",
        published="emnist-digits",
        batch_size=20,
        shuffle_buffer=100,
        client_optimizer="sgd:lr=0.02",
        probe=Batch(torch.ones(1, *shape), torch.tensor([9])),
    )


def _open_digits_only(path: str, split: Split) -> Population:
    """The digits of data that hold letters too, as TFF's whole EMNIST and FEMNIST do."""
    population = open_population(path, split)

    def digits(client_id: str) -> Examples:
        examples = population.examples(client_id)
        labels = examples.get("label")
        if labels is None or labels.max(initial=0) < 10:
            return examples
        return {name: array[labels < 10] for name, array in examples.items()}

    return Lazy(population.client_ids, digits)


def _open_sample(split: Split) -> Population:
    from tasks.digits import open_digits

    return open_digits(split)


def _config(name: str, layers: list[dict[str, Any]]) -> str:
    """A Keras Sequential `model_config`, so that these models and imported ones are built by the same code."""
    return json.dumps({"class_name": "Sequential", "config": {"name": name, "layers": layers}})


def _layer(class_name: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name, **config}}


_ZEROS = {"class_name": "Zeros", "config": {}}
_LINEAR = [
    _layer("InputLayer", "input", batch_input_shape=[None, 784]),
    _layer("Dense", "dense", units=10, activation="linear", kernel_initializer=_ZEROS),
]
_SAME = {"padding": "same"}
_CNN = [
    _layer("InputLayer", "input", batch_input_shape=[None, 28, 28, 1]),
    _layer("Conv2D", "conv2d", filters=32, kernel_size=[5, 5], activation="relu", **_SAME),
    _layer("MaxPooling2D", "max_pooling2d", pool_size=[2, 2], strides=[2, 2], **_SAME),
    _layer("Conv2D", "conv2d_1", filters=64, kernel_size=[5, 5], activation="relu", **_SAME),
    _layer("MaxPooling2D", "max_pooling2d_1", pool_size=[2, 2], strides=[2, 2], **_SAME),
    _layer("Flatten", "flatten"),
    _layer("Dense", "dense", units=512, activation="relu"),
    _layer("Dense", "dense_1", units=10, activation="linear"),
]
