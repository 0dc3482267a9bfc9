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
    help="Where to write them. [default: here]",
)
@click.option("--replace", is_flag=True, help="Also if there is a pair of that name, which is then lost.")
@click.argument("name", metavar="NAME")
def keygen(name: str, directory: Path, replace: bool) -> int:
    """Make a pair of keys for a broker, worker or client, and print the two files.

    NAME.key_secret stays where it is used, and nobody else may read it. NAME.key is public: a client's goes into the
    directory that the broker calls authorized_clients, where NAME is what the client is called; the broker's goes to
    every client and worker.
    """
    from kingtask import curve

    for file in curve.write_pair(directory, name, replace=replace):
        click.echo(file)
    return Exit.OK
