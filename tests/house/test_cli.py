"""The verbs from outside: exit codes, messages, pure JSON, interrupts, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Echoc = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The pocket model, compiled through the command line."""
    path = tmp_path_factory.mktemp("artifact") / "pocket.echo"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "echoc", "compile", root / "examples" / "pocket" / "model", "-o", path, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ECHOC_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["artifact"] == str(path)
    assert report["bytes"] == path.stat().st_size
    assert report["kv_dtypes"] == ["bf16"]
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["compile"],
        ["compile", "model", "--weights-dtype", "int3"],
        ["compile", "model", "--group", "48"],
        ["compile", "model", "--weights", "random"],
        ["compile", "model", "--weights", "random:-1"],
        ["compile", "model", "--context-length", "0"],
        ["tune", "model", "--target", "cuda:sm_90a"],
        ["inspect", "x.echo", "--program", "--kernel", "k"],
        ["run", "--interactive", "--json"],
        ["run", "--interactive", "--prompt", "x"],
        ["run", "--threads", "0", "--prompt", "x"],
        ["run", "--resume"],
        ["run", "--resume", "--journal", "j", "--prompt", "x"],
        ["run", "--interactive", "--journal", "j"],
        ["run", "--kv-dtype", "int3", "--prompt", "x"],
        ["tune", "model", "--kv-dtype", "int3"],
        ["doctor", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_2_and_prints_nothing_on_stdout(echoc: Echoc, arguments: list[str]) -> None:
    done = echoc(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: echoc")


def refused(done: CompletedProcess[str], *words: str) -> None:
    """One message on standard error that has these words, and exit code 1."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("echoc: ")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("verb", ["inspect", "run", "compile", "bench", "tune"])
def test_a_missing_file_is_named(echoc: Echoc, verb: str) -> None:
    options = ["--prompt", "x"] if verb == "run" else []
    refused(echoc(verb, "nowhere.echo", *options), "nowhere.echo")


@pytest.mark.parametrize("verb", ["inspect", "run"])
@pytest.mark.parametrize("content", [b"", b"not an artifact at all", b"PK\x03\x04 cut here"])
def test_a_foreign_file_is_refused(echoc: Echoc, tmp_path: Path, verb: str, content: bytes) -> None:
    path = tmp_path / "foreign.echo"
    path.write_bytes(content)
    options = ["--prompt", "x"] if verb == "run" else []
    refused(echoc(verb, path, *options), "foreign.echo")


def test_another_zip_is_refused(echoc: Echoc, tmp_path: Path) -> None:
    path = tmp_path / "other.echo"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(echoc("inspect", path), "other.echo", "hello.txt")


@pytest.mark.parametrize("keep", [0.0001, 0.3, 0.9, 0.9999])
def test_a_truncated_artifact_is_refused(echoc: Echoc, artifact: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.echo"
    data = artifact.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(echoc("inspect", path), "cut.echo")
    refused(echoc("run", path, "--prompt", "x"), "cut.echo")


def test_a_flipped_bit_is_found(echoc: Echoc, artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "flipped.echo"
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    refused(echoc("inspect", path, "--verify"), "flipped.echo")
    refused(echoc("run", path, "--prompt", "x"), "flipped.echo")


def test_a_folder_that_is_no_model_is_refused_and_leaves_nothing(echoc: Echoc, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    refused(echoc("compile", folder, "-o", tmp_path / "x.echo"), "empty", "config.json")
    assert not (tmp_path / "x.echo").exists()


def test_inspect_shows_what_is_inside(echoc: Echoc, artifact: Path) -> None:
    done = echoc("inspect", artifact)
    assert done.returncode == 0, done.stderr
    for heading in ("target", "Membranes", "Ports", "State", "Weights", "Variants", "Kernels", "Schedules", "Members"):
        assert heading in done.stdout, heading
    assert "keys and values in bf16" in done.stdout
    document = json.loads(echoc("inspect", artifact, "--json").stdout)
    assert document["manifest"]["schema"] == 2
    assert document["bytes"] == artifact.stat().st_size
    assert sum(document["members"].values()) <= document["bytes"]


def test_inspect_prints_a_kernel_by_name(echoc: Echoc, artifact: Path) -> None:
    names = json.loads(echoc("inspect", artifact, "--json").stdout)["manifest"]["kernels"]["sources"]
    name = sorted(names)[0]
    source = echoc("inspect", artifact, "--kernel", name)
    assert source.returncode == 0, source.stderr
    assert name in source.stdout
    answer = json.loads(echoc("inspect", artifact, "--kernel", name, "--json").stdout)
    assert answer["kernel"] == name
    assert answer["source"].strip() == source.stdout.strip()
    refused(echoc("inspect", artifact, "--kernel", "no_such_kernel"), "no_such_kernel", name)


def test_inspect_prints_the_program_and_a_variant(echoc: Echoc, artifact: Path) -> None:
    assert "append" in echoc("inspect", artifact, "--program").stdout
    done = echoc("inspect", artifact, "--variant", 0)
    assert done.returncode == 0, done.stderr
    assert "weight " in done.stdout
    refused(echoc("inspect", artifact, "--variant", 99), "99")


def test_inspect_verifies_every_hash(echoc: Echoc, artifact: Path) -> None:
    done = echoc("inspect", artifact, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manifest"]["hashes"]


def test_run_streams_text_and_the_same_again(echoc: Echoc, artifact: Path) -> None:
    asked = ("run", artifact, "--prompt", "def fibonacci(n):", "--max-tokens", 24, "--temperature", 0)
    done = echoc(*asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def fibonacci(n):")
    assert len(done.stdout) > len("def fibonacci(n):") + 10
    assert echoc(*asked).stdout == done.stdout


def test_run_json_has_the_answer_alone(echoc: Echoc, artifact: Path) -> None:
    done = echoc("run", artifact, "--prompt", "import os\n", "--max-tokens", 8, "--temperature", 0, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == "import os\n"
    assert len(answer["token_ids"]) <= 8
    assert answer["finish_reason"] in ("length", "stop")


def test_run_reads_the_prompt_from_a_pipe(echoc: Echoc, artifact: Path) -> None:
    done = echoc("run", artifact, "--max-tokens", 4, "--temperature", 0, stdin="class Point:")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class Point:")


def test_run_converses_line_by_line(echoc: Echoc, artifact: Path) -> None:
    asked = ("run", artifact, "--interactive", "--raw", "--max-tokens", 4, "--temperature", 0)
    done = echoc(*asked, stdin="import os\n\nimport sys\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import os")
    assert "\nimport sys" in done.stdout


def test_run_without_a_model_compiles_the_pocket_model_once(echoc: Echoc, cache: Path) -> None:
    assert not (cache / "artifacts").exists()
    asked = ("run", "--prompt", "def fibonacci(n):", "--max-tokens", 8, "--temperature", 0)
    first = echoc(*asked)
    assert first.returncode == 0, first.stderr
    assert "compiling" in first.stderr
    again = echoc(*asked)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "compiling" not in again.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_ended_is_resumed(
    echoc: Echoc, artifact: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    asked = ["--prompt", "import os\n", "--max-tokens", "450", "--top-k", "40", "--seed", "5", "--threads", "1"]
    asked = ["run", str(artifact), *asked, "--deterministic"]
    journal = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "echoc", *asked, "--journal", journal], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(30)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    whole = json.loads(echoc(*asked, "--json", "--journal", tmp_path / "other").stdout)
    done = echoc("run", artifact, "--deterministic", "--journal", journal, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["resumed"]
    assert answer["outputs"] == [{name: whole[name] for name in ("text", "token_ids", "finish_reason")}]
    again = echoc("run", artifact, "--journal", journal, "--resume")
    assert (again.returncode, again.stdout) == (0, "") and "no unfinished request" in again.stderr
    refused(echoc("run", artifact, "--journal", tmp_path / "absent", "--resume"), "absent: no such journal")


def test_run_compiles_with_another_format_of_keys_and_values(echoc: Echoc, artifact: Path) -> None:
    asked = ("--prompt", "import os\n", "--max-tokens", 4, "--temperature", 0, "--kv-dtype", "int8")
    done = echoc("run", *asked)
    assert done.returncode == 0, done.stderr
    assert "compiling" in done.stderr
    refused(echoc("run", artifact, *asked), "--kv-dtype is for compiling")


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-p", "0"],
        ["--top-k", "-5"],
        ["--min-p", "2"],
        ["--repetition-penalty", "0"],
        ["--max-tokens", "0"],
        ["--system", "be brief"],
    ],
)
def test_absurd_wishes_are_refused(echoc: Echoc, artifact: Path, options: list[str]) -> None:
    done = echoc("run", artifact, "--raw", "--prompt", "x", *options)
    refused(done)


def test_an_empty_prompt_and_an_endless_one_are_refused(echoc: Echoc, artifact: Path) -> None:
    refused(echoc("run", artifact, "--raw", "--prompt", "", "--max-tokens", 4))
    refused(echoc("run", artifact, "--raw", "--max-tokens", 4, stdin="word " * 100_000))


def test_a_reader_that_goes_away_ends_the_run_quietly(artifact: Path) -> None:
    command = f"{sys.executable} -m echoc run {artifact} --prompt import --max-tokens 200 | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "i"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_compile_leaves_nothing(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    model = Path(__file__).resolve().parents[2] / "examples" / "pocket" / "model"
    environment = {**os.environ, "ECHOC_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "echoc", "compile", model, "-o", out / "x.echo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    build = tmp_path / "cache" / "build"
    while not (build.is_dir() and any(build.iterdir())):
        assert process.poll() is None, "the compile ended before a kernel was built"
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert list(out.iterdir()) == []
    assert [path.name for path in build.iterdir() if path.suffix not in (".o", ".so")] == []
