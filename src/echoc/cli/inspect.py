"""`echoc inspect`: what is inside an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echoc.cli.console import DebugOption, JsonOption, print_json, say, verb
from echoc.errors import ArtifactError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

PROGRAM = "program.eir"


@verb
def command(
    artifact: Annotated[Path, typer.Argument(help="An .echo file.")],
    kernel: Annotated[
        str | None, typer.Option("--kernel", metavar="NAME", help="Print the generated source of this kernel.")
    ] = None,
    program: Annotated[bool, typer.Option("--program", help="Print the program in the text form of the IR.")] = False,
    variant: Annotated[
        int | None, typer.Option("--variant", metavar="N", help="Print the launches of variant N, counted from 0.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every member first.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show membranes, state, variants, kernels, memory plan, schedules and sizes of an artifact."""
    from echoc.cli.report import describe, describe_variant
    from echoc.runtime.artifact import Artifact

    if sum((kernel is not None, program, variant is not None)) > 1:
        raise typer.BadParameter("--kernel, --program and --variant go one at a time")
    opened = Artifact(artifact, verify=verify)
    manifest = dict(opened.manifest.raw)
    if verify:
        opened.check_hashes()
        say(f"{artifact}: all {len(opened.members)} members are as they were made")
    if kernel is not None:
        name, source = kernel_source(opened, manifest.get("kernels", {}).get("sources", {}), kernel)
        _print_text(source, {"kernel": name, "source": source}, as_json)
    elif program:
        text = _text(opened, PROGRAM)
        _print_text(text, {"program": text}, as_json)
    elif variant is not None:
        text = describe_variant(manifest, variant)
        _print_text(text, {"variant": manifest["variants"][variant]}, as_json)
    else:
        members = {name: member.size for name, member in opened.members.items()}
        if as_json:
            size = artifact.stat().st_size
            print_json({"path": str(artifact), "bytes": size, "members": members, "manifest": manifest})
        else:
            typer.echo(describe(artifact, manifest, members))


def kernel_source(opened: "Artifact", sources: dict[str, str], wanted: str) -> tuple[str, str]:
    """Full name and source of the kernel called `wanted`, or of the only one whose name begins so."""
    matches = [wanted] if wanted in sources else sorted(name for name in sources if name.startswith(wanted))
    if len(matches) != 1:
        found = "no kernel" if not matches else f"{len(matches)} kernels"
        names = ", ".join(matches or sorted(sources))
        raise ArtifactError(f"{opened.path} has {found} called {wanted!r}; say one of: {names}")
    return matches[0], _text(opened, sources[matches[0]])


def _text(opened: "Artifact", member: str) -> str:
    text = opened.text(member)
    if text is None:
        raise ArtifactError(f"{opened.path} lacks its member {member}; compile the model again")
    return text


def _print_text(text: str, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        typer.echo(text.rstrip("\n"))
