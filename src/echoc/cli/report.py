"""The text of `echoc inspect`: a manifest as a page that a person can read."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from echoc.cli.console import human_bytes
from echoc.errors import ArtifactError

Manifest = dict[str, Any]


def describe(path: Path, manifest: Manifest, members: dict[str, int]) -> str:
    """The whole page. `members` gives each member's size in bytes."""
    launches = not {"system", "compound"} & set(manifest)  # what is stepped by launch lists
    sections = [
        _heading(path, manifest),
        _model(manifest),
        _system(manifest),
        "Membranes\n" + "\n".join(_membrane(manifest["membrane"], 1)) if manifest.get("membrane") else "",
        *([_ports(manifest), _states(manifest), _weights(manifest), _variants(manifest)] if launches else []),
        _kernels(manifest, members) if "compound" not in manifest else "",
        _schedules(manifest) if launches else "",
        _members(members),
    ]
    return "\n\n".join(section for section in sections if section)


def describe_variant(manifest: Manifest, number: int) -> str:
    """The launches of one variant in order: kernel, barrier, where each argument lies, schedule. The kernel after an
    `or` runs in place of the first where no logits are stored."""
    variants = manifest.get("variants", [])
    if not 0 <= number < len(variants):
        raise ArtifactError(f"no variant {number}; the artifact has {len(variants)}, counted from 0")
    variant = variants[number]
    rows = [
        (
            index,
            launch["kernel"] + (f" or {launch['choosing']['kernel']}" if launch.get("choosing") else ""),
            "barrier" if launch.get("barrier") else "dependent" if launch.get("dependent") else "",
            ", ".join(_argument(manifest, kind, where) for kind, where in launch["args"]),
            _pairs(launch.get("schedule")),
        )
        for index, launch in enumerate(variant["launches"])
    ]
    head = f"Variant {number}: rule {variant['rule']}, at most {variant['max_tokens']} tokens"
    return head + "\n" + _table(("", "kernel", "before", "arguments", "schedule"), rows)


def _argument(manifest: Manifest, kind: str, where: int) -> str:
    """`["weight", 3]` by its name; an arena argument by its offset in bytes."""
    tables = {"weight": "weights", "port": "ports", "state": "states"}
    if kind in tables:
        return f"{kind} {manifest[tables[kind]][where]['name']}"
    return f"{kind}+{where}"


def _heading(path: Path, manifest: Manifest) -> str:
    target = manifest["target"]
    rows = [
        ("artifact", f"{path}, {human_bytes(path.stat().st_size)}, schema {manifest['schema']}"),
        ("made by", f"echoc {manifest.get('echoc', '')}" + _pairs(manifest.get("tools"), prefix=" with ")),
        ("from", _pairs(manifest.get("source"))),
        ("target", f"{target['device']}:{target['level']}" + _status(target)),
        ("features", " ".join(target.get("features", []))),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in rows if value)


def _status(target: dict[str, Any]) -> str:
    """What docs/devices.md says of a GPU's architecture."""
    on_gpu = target["device"] in ("cuda", "rocm")
    return " (compiles only: code for it has run on no device yet)" if on_gpu and target["level"] != "sm_90a" else ""


def _model(manifest: Manifest) -> str:
    return "Model\n  " + _pairs(manifest["model"]) if manifest.get("model") else ""


def _system(manifest: Manifest) -> str:
    """A P system: its mode, its groups of rules, its start."""
    system = manifest.get("system")
    if not isinstance(system, dict):
        return ""
    layout = system["layout"]
    groups = [
        f"{group['rules']} {group['bound']}" + (f" {group['limit']}" if group["bound"] == "at_most" else "")
        for group in system.get("groups", [])
    ]
    cells = len(layout["cells"]) - (system["engine"] == "runs")  # there the last one is the environment
    schedules = Counter((s["rules"], s["counts"]) for s in layout.get("schedules", []))
    rows = [
        ("mode", f"{system['mode']}, {system['priority']} priorities"),
        ("engine", {"runs": "membranes that stay, counts in one vector", "population": "membranes in pages"}.get(
            system["engine"], system["engine"])),
        ("rules", f"{len(layout['rules'])}: " + ", ".join(groups)),
        ("start", f"{cells} membranes"),
        ("schedule", ", ".join(f"{n} kinds {rules} over {counts} counts" for (rules, counts), n in schedules.items())),
        ("objects", str(len(layout["objects"])) if "objects" in layout else f"{layout['size']} counts"),
    ]  # fmt: skip
    return "System\n" + "\n".join(f"  {name:<9}{value}" for name, value in rows if value)


def _membrane(membrane: dict[str, Any], depth: int) -> Iterable[str]:
    """The tree, one line a membrane: rules, and how many states and ports it has."""
    states, ports = membrane.get("states", []), membrane.get("ports", [])
    yield (
        f"{'  ' * depth}[ {membrane['name']} ]  rules: {', '.join(membrane.get('rules', [])) or 'none'};"
        f" {len(states)} states; ports: {', '.join(ports) or 'none'}"
    )
    for child in membrane.get("children", []):
        yield from _membrane(child, depth + 1)


def _ports(manifest: Manifest) -> str:
    bounds = ", ".join(
        f"{symbol['name']} in {symbol['low']}..{symbol['high']}" for symbol in manifest.get("symbols", [])
    )
    rows = [(port["direction"], port["name"], _tensor(port)) for port in manifest.get("ports", [])]
    return f"Ports ({bounds})\n" + _table(("", "name", "type"), rows)


def _states(manifest: Manifest) -> str:
    from echoc.runtime.artifact import kv_dtypes

    def facts(state: dict[str, Any]) -> tuple[Any, ...]:
        return state["kind"], _tensor(state), state.get("page_size"), state.get("bytes_per_page")

    rows = []
    for (kind, tensor, page_size, page_bytes), run in groupby(
        sorted(manifest.get("states", []), key=_state_key), key=facts
    ):
        names = [state["name"] for state in run]
        label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"
        rows.append((label, kind, tensor, page_size or "", human_bytes(page_bytes) if page_bytes else ""))
    total = sum(state.get("bytes_per_page", 0) for state in manifest.get("states", []))
    page, held = manifest.get("page_size"), " and ".join(kv_dtypes(manifest))
    head = f"State: {human_bytes(total)} for a page of {page} tokens over all layers" if page else "State"
    head += (f"; keys and values in {held}" if held else "") + "\n"
    return head + _table(("name", "kind", "a token", "page", "bytes a page"), rows)


def _state_key(state: dict[str, Any]) -> tuple[str, int, str]:
    """States alike side by side, layers in the order of their numbers."""
    digits = "".join(letter for letter in state["name"] if letter.isdigit())
    return _tensor(state), int(digits or 0), state["name"]


def _weights(manifest: Manifest) -> str:
    count, size = Counter[str](), Counter[str]()
    for weight in manifest.get("weights", []):
        label = weight["format"] + (f" in groups of {weight['group']}" if weight.get("group") else "")
        count[label] += 1
        size[label] += weight["nbytes"]
    rows = [(label, count[label], human_bytes(size[label])) for label in sorted(count)]
    head = f"Weights: {human_bytes(sum(size.values()))} packed"
    if manifest.get("random_weights"):
        head += f", filled at load from seed {manifest['random_weights']['seed']}"
    return head + "\n" + _table(("format", "blobs", "bytes"), rows)


def _variants(manifest: Manifest) -> str:
    gpu = _on_gpu(manifest)
    rows = [
        (
            number,
            variant["rule"],
            variant["max_tokens"],
            variant["max_rows"],
            "yes" if variant["deterministic"] else "no",
            len(variant["launches"]),
            sum(1 for launch in variant["launches"] if launch.get("dependent" if gpu else "barrier")),
            human_bytes(variant["arena_bytes"]),
            *([] if gpu else [human_bytes(variant["scratch_bytes"])]),
        )
        for number, variant in enumerate(manifest.get("variants", []))
    ]
    columns = ["", "rule", "tokens", "rows", "deterministic", "launches", "barriers", "arena", "scratch a thread"]
    if gpu:  # launches of one stream wait by themselves; a dependent one may start before the last has ended
        columns = [*columns[:6], "dependent", "arena"]
    return "Variants and their memory\n" + _table(columns, rows)


def _kernels(manifest: Manifest, members: dict[str, int]) -> str:
    library = manifest.get("kernels", {}).get("library")
    sources: dict[str, str] = manifest.get("kernels", {}).get("sources", {})
    launches = [launch for variant in manifest.get("variants", []) for launch in variant["launches"]]
    used = Counter[str](launch["kernel"] for launch in launches)
    used.update(launch["choosing"]["kernel"] for launch in launches if launch.get("choosing"))
    if _on_gpu(manifest):
        return _binaries(manifest, members, used)
    rows = [
        (name, used[name], human_bytes(members[member]))
        for name, member in sorted(sources.items())
        if member in members
    ]
    return f"Kernels in {library} (--kernel NAME prints the source)\n" + _table(("name", "launches", "source"), rows)


def _on_gpu(manifest: Manifest) -> bool:
    return "binaries" in manifest.get("kernels", {})


def _binaries(manifest: Manifest, members: dict[str, int], used: Counter[str]) -> str:
    """Kernels of a GPU with what they take of it, as their objects say, and whose they are."""
    rocm = manifest["target"]["device"] == "rocm"
    rows = [
        (
            name,
            used[name],
            binary["threads"],
            binary.get("registers", ""),
            *([binary.get("scalar_registers", ""), binary.get("wavefront", "")] if rocm else []),
            binary.get("spills", ""),
            binary["shared_bytes"],
            human_bytes(members[binary["member"]]),
        )
        for name, binary in sorted(manifest["kernels"]["binaries"].items())
        if binary["member"] in members
    ]
    scalar = ("scalar registers", "wavefront") if rocm else ()
    columns = ("name", "launches", "threads", "registers", *scalar, "spills", "shared bytes", "code")
    head = "Kernels (--kernel NAME prints the source); matrix products are among them, no library of the vendor is used"
    return f"{head}\n" + _table(columns, rows)


def _schedules(manifest: Manifest) -> str:
    """Each distinct schedule once, with the kernels that run under it."""
    kernels: dict[str, set[str]] = {}
    for variant in manifest.get("variants", []):
        for launch in variant["launches"]:
            text = json.dumps(launch.get("schedule") or {}, sort_keys=True)
            kernels.setdefault(text, set()).add(launch["kernel"])
    rows = [(len(names), _pairs(json.loads(text)) or "(defaults)") for text, names in sorted(kernels.items())]
    return "Schedules\n" + _table(("kernels", "schedule"), rows)


def _members(members: dict[str, int]) -> str:
    rows = [(name, human_bytes(size)) for name, size in members.items() if not name.startswith("kernels/")]
    in_kernels = [size for name, size in members.items() if name.startswith("kernels/")]
    rows.append((f"kernels/ ({len(in_kernels)} files)", human_bytes(sum(in_kernels))))
    return "Members\n" + _table(("name", "bytes"), rows)


def _tensor(described: dict[str, Any]) -> str:
    return f"{described['dtype']}[{', '.join(map(str, described.get('shape', [])))}]"


def _pairs(values: dict[str, Any] | None, prefix: str = "") -> str:
    """`name value` pairs in one line; what is nested is left to --json."""
    flat = {name: value for name, value in (values or {}).items() if value is not None and value != ""}
    text = ", ".join(f"{name} {value}" for name, value in flat.items() if not isinstance(value, dict))
    return prefix + text if text else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    if not rows:
        return "  none"
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in cells)) for i, title in enumerate(columns)]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(columns))]
    lines = []
    for line in [columns, *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        lines.append(("  " + "  ".join(padded)).rstrip())
    return "\n".join(lines)
