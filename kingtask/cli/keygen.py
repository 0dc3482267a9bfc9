"""`kingtask keygen`: the two key files of a broker, worker or client."""

from __future__ import annotations

from pathlib import Path

import click

from kingtask.cli.exit import Exit


@click.command()
@click.option(
    "--directory",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path),
    help="Directory for the files. [default: the present one]",
)
@click.option("--replace", is_flag=True, help="Overwrite an existing pair of that name.")
@click.argument("name", metavar="NAME")
def keygen(name: str, directory: Path, replace: bool) -> int:
    """Make a pair of keys for a broker, worker or client, and print the two files.

    NAME.key_secret stays on its host, and only its user may read it. NAME.key is public: copy a client's key into the
    broker's directory authorized_clients, where NAME becomes the name of the client; copy the broker's key to every
    client and worker.
    """
    from kingtask import curve

    for file in curve.write_pair(directory, name, replace=replace):
        click.echo(file)
    return Exit.OK
