"""A model or datasets for others: `python -m flows.export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import state, terminal
from flows.sharing.outgoing import export, listing, push, token_for
from tasks.core.errors import BadInput


def command(
    places: Annotated[
        list[str], typer.Argument(metavar="[ITERATION] TARGET", help="An iteration, and the new folder.")
    ],
    push_to: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository on the hub public.")] = False,
    datasets: Annotated[bool, typer.Option("--datasets", help="Also what the model was trained on.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write an adapter as a whole model.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="The adapter's base on the hub.")
    ] = None,
) -> None:
    """Writes the promoted model as a Hugging Face folder with a model card."""
    root = Path.cwd()
    state.quiet(root)
    if len(places) > 2:
        raise BadInput(f"given {' '.join(places)}; at most an iteration and a new folder are expected")
    iteration, target = (places[0] if len(places) == 2 else None), Path(places[-1]).expanduser()
    token = token_for(push_to) if push_to else ""
    policy = export(root, target, iteration, base, merge, datasets)
    older = (
        ""
        if policy.iteration == policy.made
        else f" (what {policy.iteration} goes on with: its own candidate was refused)"
    )
    print(f"{target}: {policy.made}'s model, digest {policy.pointer.digest}{older}")
    print("\n".join(listing(target)))
    for url in push(target, push_to, token, public) if push_to else []:
        print(f"pushed to {url}")


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))
