"""The Flower ServerApp: what runs on the server in every way of running."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import Federation
from settings.memory import keep_freed, share_freed
from settings.schema import Settings
from settings.streams import mistakes_in_one_line, print_anything

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    share_freed()
    keep_freed()
    print_anything()
    mistakes_in_one_line()
    Federation(Settings.from_config(context.run_config), grid).run()
