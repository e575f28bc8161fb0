"""`echoc doctor`: what this machine can build and run, found out by trying, and what to install for the rest."""

import os
import platform
import sys
from typing import Any

import echoc
from echoc.cli.console import COMPILE_PACKAGES, DebugOption, JsonOption, human_bytes, package_version, print_json, verb
from echoc.cli.probe import LEVELS, Compiler, cpu_facts, probe_compilers
from echoc.errors import EchoError

RUNTIME_PACKAGES = ("numpy", "tokenizers", "jinja2", "typer", "rich")
GPU_PACKAGES = ("triton",)


@verb
def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Tell what this machine can build and run, and what to install."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def examine() -> dict[str, Any]:
    """Everything `echoc doctor` knows, as JSON-able data; compilers are tried on a real source."""
    cpu = cpu_facts()
    compilers = probe_compilers()
    packages = {name: package_version(name) for name in (*RUNTIME_PACKAGES, *COMPILE_PACKAGES, *GPU_PACKAGES)}
    native = _try_native()
    gpus = _find_gpus() if native["ok"] else []
    report: dict[str, Any] = {
        "echoc": echoc.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "native": native,
        "packages": packages,
        "compilers": [compiler.as_json() for compiler in compilers],
        "gpus": gpus,
    }
    report["targets"] = _targets(frozenset(cpu["features"]), compilers, packages, native)
    report["targets"] += _gpu_targets(gpus, packages, native)
    report["advice"] = _advice(compilers, packages, native, cpu)
    return report


def _targets(
    features: frozenset[str], compilers: list[Compiler], packages: dict[str, str | None], native: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per target: does it run here, does it build here, and what it lacks."""
    build_needs = [name for name in COMPILE_PACKAGES if packages[name] is None]
    run_needs = [] if native["ok"] else ["the native extension"]
    rows = []
    for level, needs in LEVELS.items():
        lacks = list(build_needs)
        if not any(compiler.works for compiler in compilers):
            lacks.append("a C++ compiler")
        elif not any(level in compiler.levels for compiler in compilers):
            lacks.append(f"a C++ compiler that knows -march={level}")
        rows.append(_target_row(f"cpu:{level}", needs, features, lacks, run_needs))
    return rows


def _find_gpus() -> list[dict[str, Any]]:
    """For each vendor: what its driver tells of its devices, or why there is none."""
    from echoc.runtime.devices.gpu import open_driver
    from echoc.runtime.manifest import GPUS

    found: list[dict[str, Any]] = []
    for vendor in GPUS:
        try:
            driver = open_driver(vendor)
            found.append({"vendor": vendor, "driver": driver.version, "devices": driver.devices(), "error": None})
        except EchoError as error:
            found.append({"vendor": vendor, "driver": None, "devices": [], "error": str(error)})
    return found


def _gpu_targets(
    gpus: list[dict[str, Any]], packages: dict[str, str | None], native: dict[str, Any]
) -> list[dict[str, Any]]:
    from echoc.compiler.targets.gpu.levels import LEVELS as GPU_LEVELS
    from echoc.runtime.devices.gpu import runs_on

    build_needs = [name for name in (*COMPILE_PACKAGES, *GPU_PACKAGES) if packages[name] is None]
    names = {
        (vendor, device["architecture"]) for gpu in gpus for vendor in [gpu["vendor"]] for device in gpu["devices"]
    }
    rows = []
    for vendor, levels in GPU_LEVELS.items():
        for level in levels:
            there = any(owner == vendor and runs_on(vendor, level.name, name) for owner, name in names)
            run_needs = [] if native["ok"] else ["the native extension"]
            run_needs += [] if there else [f"a device of {level.name}"]
            rows.append(_row(f"{vendor}:{level.name}", build_needs, run_needs))
    return rows


def _target_row(
    target: str, needs: frozenset[str], features: frozenset[str], build_needs: list[str], run_needs: list[str]
) -> dict[str, Any]:
    return _row(target, build_needs, [*run_needs, *(f"CPU feature {name}" for name in sorted(needs - features))])


def _row(target: str, build_needs: list[str], run_needs: list[str]) -> dict[str, Any]:
    return {
        "target": target,
        "builds": not build_needs,
        "runs": not run_needs,
        "build_needs": build_needs,
        "run_needs": run_needs,
    }


def _advice(
    compilers: list[Compiler], packages: dict[str, str | None], native: dict[str, Any], cpu: dict[str, Any]
) -> list[str]:
    advice = []
    if not native["ok"]:
        advice.append("reinstall echoc (pip install --force-reinstall echoc): its native extension does not load")
    if any(packages[name] is None for name in COMPILE_PACKAGES):
        advice.append("to compile models: pip install 'echoc[compile]'")
    elif any(packages[name] is None for name in GPU_PACKAGES):
        advice.append("to compile models for GPUs: pip install 'echoc[gpu]'")
    if not any(compiler.works for compiler in compilers):
        advice.append("to compile models: install g++ (apt-get install g++) or clang, or pip install ziglang")
    if cpu["architecture"] not in ("x86_64", "AMD64"):
        advice.append(f"the CPU kernels need x86-64 with AVX2; this machine is {cpu['architecture']}")
    return advice


def _try_native() -> dict[str, Any]:
    try:
        from echoc import _native
    except ImportError as error:
        return {"ok": False, "error": str(error)}
    return {"ok": True, "file": _native.__file__}


def _print_report(report: dict[str, Any]) -> None:
    out = sys.stdout.write
    cpu = report["cpu"]
    out(f"echoc {report['echoc']}, Python {report['python']}, {report['platform']}\n")
    out(f"CPU        {cpu['model']}, {cpu['usable_cores']} cores, {human_bytes(report['memory_bytes'])} of memory\n")
    out(f"           {' '.join(cpu['kernel_features']) or 'no feature the kernels use'}\n")
    native = report["native"]
    out(f"Extension  {'loads' if native['ok'] else 'does not load: ' + native['error']}\n")
    for name, version in report["packages"].items():
        out(f"Package    {name:<14}{version or 'not installed'}\n")
    for compiler in report["compilers"]:
        verdict = f"works ({compiler['seconds']:.1f} s)" if compiler["works"] else f"fails: {compiler['error']}"
        out(f"Compiler   {compiler['name']:<14}{compiler['version'] or 'not found'}\n")
        if compiler["version"]:
            out(f"           {'':<14}built and ran a test: {verdict}\n")
    for gpu in report["gpus"]:
        for device in gpu["devices"]:
            memory = human_bytes(device["memory_bytes"])
            out(f"GPU        {device['name']} ({device['architecture']}), {memory}, driver {gpu['driver']}\n")
        if not gpu["devices"]:
            reason = "no device" if gpu["error"] is None else gpu["error"].partition(";")[0]
            out(f"GPU        {gpu['vendor']}: {reason}\n")
    for row in report["targets"]:
        out(f"Target     {row['target']:<20}{_verdict(row)}\n")
    for line in report["advice"]:
        out(f"Advice     {line}\n")


def _verdict(row: dict[str, Any]) -> str:
    if row["builds"] and row["runs"]:
        return "builds and runs"
    if row["builds"]:
        return "builds; to run needs " + ", ".join(row["run_needs"])
    if row["runs"]:
        return "runs; to build needs " + ", ".join(row["build_needs"])
    return "needs " + ", ".join(row["build_needs"] + row["run_needs"])
