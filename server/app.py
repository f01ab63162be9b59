"""The Flower ServerApp: what runs on the server in every way of running."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import Federation
from settings.schema import Settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    Federation(Settings.from_config(context.run_config), grid).run()
