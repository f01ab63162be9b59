"""The subcommands of `fedferry`. torch and Flower are imported by the commands, not here: --help is quick."""
