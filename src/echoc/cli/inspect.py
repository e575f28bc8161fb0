"""`echoc inspect`: what is inside an artifact."""

from pathlib import Path
from typing import Annotated, Any

import typer

from echoc.cli.console import DebugOption, JsonOption, print_json, say, verb
from echoc.errors import ArtifactError


@verb
def command(
    artifact: Annotated[Path, typer.Argument(help="An .echo file.")],
    kernel: Annotated[
        str | None, typer.Option("--kernel", metavar="NAME", help="Print the generated source of this kernel.")
    ] = None,
    program: Annotated[bool, typer.Option("--program", help="Print the program in the text form of the IR.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every member first.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show membranes, state, variants, kernels, memory plan, schedules and sizes of an artifact."""
    from echoc.cli.report import describe
    from echoc.runtime.artifact import Artifact

    with Artifact(artifact) as opened:
        if verify:
            opened.verify()
            say(f"{artifact}: every hash matches")
        if kernel is not None:
            name, source = kernel_source(opened, kernel)
            _print_text(source, {"kernel": name, "source": source}, as_json)
            return
        if program:
            text = opened.read("program.eir").decode()
            _print_text(text, {"program": text}, as_json)
            return
        members = {name: opened.size(name) for name in opened.names()}
        if as_json:
            size = artifact.stat().st_size
            print_json({"path": str(artifact), "bytes": size, "members": members, "manifest": opened.manifest})
        else:
            typer.echo(describe(artifact, opened.manifest, members))


def kernel_source(opened: Any, wanted: str) -> tuple[str, str]:
    """Full name and source of the kernel called `wanted`, or of the only one whose name begins so."""
    sources: dict[str, str] = opened.manifest["kernels"]["sources"]
    matches = [wanted] if wanted in sources else [name for name in sources if name.startswith(wanted)]
    if len(matches) != 1:
        found = "no kernel" if not matches else f"{len(matches)} kernels"
        names = ", ".join(matches or sources)
        raise ArtifactError(f"{found} called {wanted!r} in the artifact; say one of: {names}")
    return matches[0], opened.read(sources[matches[0]]).decode()


def _print_text(text: str, document: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        typer.echo(text.rstrip("\n"))
