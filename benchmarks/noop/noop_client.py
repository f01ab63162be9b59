"""A client that does nothing, but says when it was reached."""

import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "reached": time.time()})
    content = RecordDict({"arrays": message.content.array_records["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "reached": time.time()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
