"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

__all__ = ["AsJson", "ModalFunction", "RunId", "Store"]

Store: TypeAlias = Annotated[
    str, typer.Option(envvar="AIODILOCO_STORE", help="Where runs are kept, as given to launch: a URI or a directory.")
]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
ModalFunction: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="APP/FUNCTION", help="Deployed Modal function that the run calls; to start replicas again."),
]
