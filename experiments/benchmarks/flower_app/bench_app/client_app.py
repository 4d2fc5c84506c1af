"""The clients' half."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bench_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    state = message.content["arrays"].to_torch_state_dict()
    client, round = context.node_config["partition-id"], message.content["config"]["server-round"]
    state, loss = task.train(state, int(client), int(round))
    metrics = MetricRecord({"num-examples": task.case()["samples"], "train_loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)
