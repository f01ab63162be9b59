"""`fedferry explore` and `download`: clients' data, and where to get them."""

from typing import Any, Literal

import click

from settings.errors import unknown
from settings.schema import Settings
from simulation.options import settings_options


@click.command()
@click.argument("task")
@settings_options(["data"])
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="data to look at",
)
@click.option(
    "--clients", default="all", show_default=True, metavar="N|all", help="how many to read"
)
@settings_options(
    ["client_ids", "seed", "logdir"],
    client_ids="clients to look at closely (empty: six drawn with --seed)",
    seed="of what is drawn",
    logdir="where pictures and table go (empty: runs/explore-TASK)",
)
def explore(split: Literal["train", "test"], clients: str, **values: Any) -> None:
    """Show how clients' data differ, before a run.

    Prints a table, and writes pictures (PNG), the table of all clients (CSV) and a TensorBoard page.

    \b
    For images: how many a client has, labels of six clients, 40 images of
    one, the mean image of each label. For text: how much a client says, the
    characters that are typical of six clients, their first words. For a task
    of your own: what its examples allow.

    \b
    Example: fedferry explore emnist_cnn --data digits_by_writer_train.h5
    """
    from simulation.explore import explore as show

    show(Settings(**values), split, clients)


@click.command()
@click.argument("name", metavar="shakespeare|emnist|emnist-digits|dickens")
def download(name: str) -> None:
    """Fetch TFF's own data or checkpoints into the user's cache.

    Then `--data tff` and `--init dickens` find them. A download that was cut
    off goes on where it stopped; what comes is checked against TFF's SHA-256
    (dickens, for which none was published: size, and that it opens).

    \b
    Example: the text tutorial on TFF's data
      fedferry download shakespeare
      fedferry run shakespeare --data tff
    """
    from simulation.download import download as fetch
    from simulation.transfer import Transfer
    from tasks.published import PUBLISHED, cache_folder

    if name not in PUBLISHED:
        raise unknown("download", name, PUBLISHED)
    fetch(name, PUBLISHED[name], cache_folder(), Transfer())
