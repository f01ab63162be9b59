"""`fedferry explore`: what clients have."""

import click

from simulation.options import settings_options


@click.command()
@click.argument("task")
@settings_options(["data"])
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option(
    "--clients", default="all", show_default=True, metavar="N|all", help="how many to read"
)
@click.option(
    "--client-ids",
    default="",
    metavar="A,B,...",
    help="clients to look at closely (default: six drawn with --seed)",
)
@click.option("--seed", default=0, show_default=True, help="of what is drawn")
@click.option("--logdir", default="", metavar="DIR", help="[default: runs/explore-TASK]")
def explore(
    task: str, data: str, split: str, clients: str, client_ids: str, seed: int, logdir: str
) -> None:
    """Show how clients' data differ: a table, pictures (PNG) and a TensorBoard page.

    \b
    For images: how many a client has, labels of six clients, 40 images of
    one, the mean image of each label. For text: how much a client says, the
    characters that are typical of six clients, their first words. For a task
    of your own: what its examples allow.

    \b
    Example: fedferry explore emnist_cnn --data digits_by_writer_train.h5
    """
    from simulation.explore import explore as show

    show(
        task,
        data,
        split,  # type: ignore[arg-type]
        client_ids=client_ids,
        clients=clients,
        seed=seed,
        logdir=logdir,
    )
