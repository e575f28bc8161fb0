"""Tokens of a source: the small part that the readers of membrane languages share."""

from __future__ import annotations

import re
from typing import NamedTuple

from echoc.compiler.ir.algebra import Where

from .source import SourceError, SourceText

MAX_COUNT = 2**63 - 1  # of one object in one place
MAX_DEPTH = 200  # brackets inside brackets
MAX_TOKENS = 8_000_000


class Token(NamedTuple):
    """`kind` is a name of the pattern's groups, `end` after the last one."""

    kind: str
    text: str
    offset: int

    def __str__(self) -> str:
        return "the end of the file" if self.kind == "end" else repr(self.text)


class Tokens:
    """A source cut into tokens, read from left to right.

    pattern: alternatives with one named group each. Matches of the group `skip` are left out; a match of the group
    `bad` is refused as `broken` says, and so is a character that nothing matches.
    """

    def __init__(self, source: SourceText, pattern: re.Pattern[str], broken: str) -> None:
        self.source = source
        self.items: list[Token] = []
        self.at = 0
        offset = 0
        for match in pattern.finditer(source.text):
            if match.start() != offset:
                break
            offset = match.end()
            kind = match.lastgroup or ""
            if kind == "bad":
                raise source.error(f"found {match.group()[:20]!r}", match.start(), broken)
            if kind != "skip":
                self.items.append(Token(kind, match.group(), match.start()))
                if len(self.items) > MAX_TOKENS:
                    raise source.error(f"more than {MAX_TOKENS} tokens", match.start(), "a smaller source")
        if offset < len(source.text):
            raise source.error(f"unexpected character {source.text[offset]!r}", offset)
        self.items.append(Token("end", "", len(source.text.rstrip())))

    @property
    def next(self) -> Token:
        """The token that comes next."""
        return self.items[self.at]

    def look(self, ahead: int) -> Token:
        """The token `ahead` places after the next one."""
        return self.items[min(self.at + ahead, len(self.items) - 1)]

    def take(self) -> Token:
        """The next token, and past it."""
        token = self.items[self.at]
        self.at = min(self.at + 1, len(self.items) - 1)
        return token

    def accept(self, text: str) -> bool:
        """Goes past the next token if it is `text`, and says whether it was."""
        if self.next.text == text and self.next.kind != "end":
            self.take()
            return True
        return False

    def expect(self, text: str, why: str = "") -> Token:
        """The next token, which must be `text`."""
        if self.next.text != text or self.next.kind == "end":
            raise self.error(f"found {self.next}", f"{text!r}{' ' + why if why else ''}")
        return self.take()

    def expect_kind(self, kind: str, expected: str) -> Token:
        """The next token, which must be of a kind."""
        if self.next.kind != kind:
            raise self.error(f"found {self.next}", expected)
        return self.take()

    def error(self, found: str, expected: str = "", token: Token | None = None) -> SourceError:
        """The error for a mistake at a token (None: the next one)."""
        return self.source.error(found, (token or self.next).offset, expected)

    def where(self, token: Token) -> Where:
        """The place of a token."""
        return self.source.where(token.offset)

    def count(self, token: Token) -> int:
        """The multiplicity that a token spells."""
        if len(token.text) > 20 or (value := int(token.text)) > MAX_COUNT:
            raise self.error("this multiplicity is too large", f"at most {MAX_COUNT}", token)
        return value
