"""The commands of a store: ``share-dist store ...``."""

import typer

app = typer.Typer(
    name="store", help="Look after a coordinator's store, running or not.", no_args_is_help=True
)
