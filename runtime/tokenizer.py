"""Text to tokens and back: the tokenizer of an artifact, and detokenisation as tokens come in."""

from collections.abc import Sequence

from echoc.errors import ArtifactError, RequestError

_REPLACEMENT = "\ufffd"  # what decoders give for bytes that are no whole character yet
_CONTEXT_TOKENS = 6  # of the prompt, so that the first output token's leading space survives
_MAX_PENDING = 32  # tokens; no character takes as many, so these bytes never become one


class Tokenizer:
    """A Hugging Face fast tokenizer read from its JSON."""

    def __init__(self, serialized: str, where: str) -> None:
        import tokenizers

        try:
            self.inner = tokenizers.Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(f"{where}: tokenizer.json cannot be used ({error}); compile the model again") from None
        self.inner.no_padding()
        self.inner.no_truncation()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(self.inner.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:
            raise RequestError(f"the prompt cannot be tokenised: {error}") from None

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self.inner.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it."""
        return None if token_id < 0 else self.inner.id_to_token(token_id)

    def sequences_of(self, word: str) -> list[list[int]]:
        """The token sequences that write `word` at the start of a text and after a space."""
        spellings = {tuple(self.encode(text, add_special_tokens=False)) for text in (word, " " + word.lstrip())}
        return [list(tokens) for tokens in sorted(spellings) if tokens]


class Detokenizer:
    """The text of one output, token by token, cut at the first stop string.

    Text is given out only once no later token can change it: whole characters, and nothing that may turn out to be the
    beginning of a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._stop = list(stop)
        self._include_stop = include_stop
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._read = len(self._window)  # tokens of the window whose text is known
        self.text = ""
        self._given = 0

    def fork(self) -> "Detokenizer":
        child = Detokenizer.__new__(Detokenizer)
        child.__dict__.update(self.__dict__)
        child._window = list(self._window)
        return child

    def add(self, token: int, *, may_stop: bool = True) -> str | None:
        """Takes a token; returns the stop string it completed, if any, with which the text ends."""
        self._window.append(token)
        before = self._decode(self._window[: self._read])
        after = self._decode(self._window)
        pending = len(self._window) - self._read
        if len(after) <= len(before) or (after.endswith(_REPLACEMENT) and pending < _MAX_PENDING):
            return None
        del self._window[: self._read]
        self._read = len(self._window)
        return self._append(after[len(before) :], may_stop)

    def finish(self) -> None:
        """The output ends: gives out what was held back."""
        rest = self._decode(self._window)[len(self._decode(self._window[: self._read])) :]
        self._window, self._read = [], 0
        if rest:
            self._append(rest, may_stop=False)

    def take(self, *, final: bool = False) -> str:
        """The text since the last take that nothing can change any more; all of it when `final`."""
        end = len(self.text) if final else len(self.text) - self._held()
        fresh = self.text[self._given : end]
        self._given = max(self._given, end)
        return fresh

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special) if tokens else ""

    def _append(self, fresh: str, may_stop: bool) -> str | None:
        longest = max((len(stop) for stop in self._stop), default=1)
        begin = max(0, len(self.text) - longest + 1)
        self.text += fresh
        if not may_stop:
            return None
        hits = [(self.text.find(stop, begin), stop) for stop in self._stop]
        found = min(((at, stop) for at, stop in hits if at >= 0), key=lambda hit: hit[0], default=None)
        if found is None:
            return None
        at, stop = found
        self.text = self.text[: at + len(stop) if self._include_stop else at]
        return stop

    def _held(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        held = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:size]):
                    held = size
                    break
        return held
