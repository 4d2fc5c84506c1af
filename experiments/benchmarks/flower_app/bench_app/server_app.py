"""The server's half: Flower's FedAvg, with a time mark after every round."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from bench_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, _: Context) -> None:
    case = task.case()
    strategy = FedAvg(
        fraction_train=case["per_round"] / case["clients"],
        fraction_evaluate=0.0,
        min_train_nodes=case["per_round"],
        min_available_nodes=case["clients"],
    )
    strategy.start(
        grid,
        initial_arrays=ArrayRecord(task.make().state_dict()),
        num_rounds=case["rounds"],
        evaluate_fn=mark,
    )


def mark(*_: object) -> None:
    task.mark("round")
