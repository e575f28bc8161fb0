"""Text as tokens come in: whole characters only, nothing taken back, cut at the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_text import tokenizer_json, vocabulary

from echoc.errors import ArtifactError
from echoc.runtime.tokenizer import Detokenizer, Tokenizer

TOKENIZER = Tokenizer(tokenizer_json(), "toy")
SIZE = len(vocabulary())


def stream(tokens: list[int], **options: object) -> tuple[list[str], str, str | None]:
    """The increments, the text, and the stop string that ended it."""
    detokenizer = Detokenizer(TOKENIZER, [], **options)  # type: ignore[arg-type]
    parts: list[str] = []
    for token in tokens:
        stopped = detokenizer.add(token)
        if stopped is not None:
            parts.append(detokenizer.take(final=True))
            return parts, detokenizer.text, stopped
        parts.append(detokenizer.take())
    detokenizer.finish()
    parts.append(detokenizer.take(final=True))
    return parts, detokenizer.text, None


@given(st.lists(st.integers(0, SIZE - 1), max_size=60))
def test_increments_add_up_to_the_decoded_text(tokens: list[int]) -> None:
    parts, text, _ = stream(tokens)
    assert "".join(parts) == text == TOKENIZER.decode(tokens)


@given(st.text(alphabet="abé😀🙂 x", max_size=30))
def test_no_increment_holds_half_a_character(text: str) -> None:
    parts, whole, _ = stream(TOKENIZER.encode(text))
    assert whole == text
    assert all("\ufffd" not in part for part in parts)


@given(
    st.text(alphabet="ab😀x", max_size=30),
    st.lists(st.text(alphabet="ab😀x", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_the_first_stop_string_cuts(text: str, stops: list[str], include: bool) -> None:
    parts, found, stopped = stream(TOKENIZER.encode(text), stop=stops, include_stop=include)
    assert "".join(parts) == found
    assert text.startswith(found)
    if stopped is None:
        assert found == text
        assert not any(stop in text for stop in stops)
    else:
        body = found if include else found + stopped
        assert text.startswith(body)
        assert body.endswith(stopped)
        assert not any(stop in body[: len(body) - len(stopped)] for stop in stops)  # those that overlap may tie


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    parts, text, stopped = stream(TOKENIZER.encode("hello END of it"), stop=["END"])
    assert (text, stopped) == ("hello ", "END")
    assert all("E" not in part for part in parts)


def test_special_tokens_show_only_on_request() -> None:
    tokens = [*TOKENIZER.encode("ab"), 0]
    assert stream(tokens)[1] == "ab"
    assert stream(tokens, skip_special_tokens=False)[1] == "ab<eos>"


def test_bytes_that_never_become_a_character_do_not_hold_the_text_for_ever() -> None:
    broken = vocabulary()["Ã"]  # 0xC3 alone
    parts, text, _ = stream([broken] * 100)
    assert text == "\ufffd" * 100
    assert sum(bool(part) for part in parts) > 1


def test_a_tokenizer_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"toy: tokenizer\.json cannot be used"):
        Tokenizer("{}", "toy")
