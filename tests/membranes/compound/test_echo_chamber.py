"""The example, end to end: a signal drives a deep tree reservoir, whose readout places objects in a P system.

Its rule prompts the pocket language model, whose text is the output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import echoc
from echoc.runtime.artifact import Artifact
from echoc.runtime.compound import CompoundProgram

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "membranes" / "echo_chamber"
PERIOD_OF_EVIDENCE = 24  # steps within which five squares must be seen


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts of the example, imported as they import each other."""
    from importlib import import_module

    sys.path.insert(0, str(EXAMPLE))
    try:
        yield {name: import_module(name) for name in ("waves", "train")}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("waves", "train"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return echoc.compile(EXAMPLE / "echo_chamber.toml", output=tmp_path_factory.mktemp("chamber") / "echo_chamber.echo")


def test_the_readout_is_what_the_script_learns(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    assert scripts["train"].train(tmp_path / "ear.npz") > 0.95
    with np.load(tmp_path / "ear.npz") as made, np.load(EXAMPLE / "ear.npz") as kept:
        np.testing.assert_allclose(made["readout"], kept["readout"], rtol=1e-5, atol=1e-7)


def test_a_signal_becomes_a_text(scripts: dict[str, ModuleType], artifact: Artifact) -> None:
    run = CompoundProgram(artifact).create(seed=1)
    asked: list[int] = []
    run.on_crossing = lambda step, membrane, port, value: asked.append(step) if port == "asks" else None
    signal, kinds = scripts["waves"].waves(11, 6)
    texts, shapes = [], []
    for step, outputs in run.run({"signal": signal}):
        shapes.append(outputs["shapes"])
        if "text" in outputs:
            texts.append((step, outputs["text"]))
    assert np.mean(np.argmax(shapes[50:], axis=1) == kinds[50:].argmax(axis=1)) > 0.95
    begins = [t + 1 for t in range(1, len(kinds)) if kinds[t, 1] > kinds[t - 1, 1]]
    assert len(begins) == len(asked) == len(texts) == 3
    for begin, ask, (step, text) in zip(begins, asked, texts, strict=True):
        assert begin < ask <= begin + PERIOD_OF_EVIDENCE
        assert step == ask + 1
        assert text.startswith("def square_wave(")
    assert run.activity() == {"ear": len(signal), "mind": len(signal), "voice": 3}


def test_the_text_is_that_of_the_model(artifact: Artifact, scripts: dict[str, ModuleType]) -> None:
    """What the voice says is what the model, taken out of the artifact, says by itself."""
    (member,) = (m for m in artifact.members if m.endswith("voice.echo"))
    params = echoc.SamplingParams(temperature=0, max_tokens=48)
    llm = echoc.LLM(artifact.inside(member), num_pages=64)
    (alone,) = llm.generate("def square_wave(", params)
    signal, _ = scripts["waves"].waves(3, 2)
    found = [o["text"] for _, o in CompoundProgram(artifact).create().run({"signal": signal}) if "text" in o]
    assert found == ["def square_wave(" + alone.outputs[0].text]


def test_without_the_event_there_is_no_text(artifact: Artifact, scripts: dict[str, ModuleType]) -> None:
    signal, _ = scripts["waves"].waves(8, 1)
    run = CompoundProgram(artifact).create()
    assert all("text" not in outputs for _, outputs in run.run({"signal": signal}))
    assert run.activity()["voice"] == 0
