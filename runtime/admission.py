"""From what a caller asks for to a request that can be served: tokens, limits, and the state that each output needs."""

import hashlib
import operator
import reprlib
from collections.abc import Sequence

import numpy as np

from echoc import _native
from echoc.errors import RequestError
from echoc.runtime import scheduler
from echoc.runtime.outputs import Logprobs
from echoc.runtime.pages import PagePool
from echoc.runtime.request import Completion, Request
from echoc.runtime.tokenizer import Detokenizer, Tokenizer

_EMPTY = "the prompt is empty; to start from nothing, give the begin token's id as the prompt"


class Admission:
    """What an engine checks requests against. `seed` is for requests that bring none."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        pool: PagePool,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        seed: int,
    ) -> None:
        self.vocab_size, self.context_length, self.pool, self.tokenizer = vocab_size, context_length, pool, tokenizer
        self.eos_token_ids, self._seed = eos_token_ids, seed

    def tokenize(self, prompt: str | Sequence[int], add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt. Raises RequestError for one that is neither text nor tokens of the vocabulary."""
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError(_EMPTY)
            if self.tokenizer is None:
                raise RequestError("the artifact has no tokenizer: give the prompt as token ids")
            return self.known(self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens))
        try:
            return self.known([operator.index(token) for token in prompt])
        except TypeError:
            raise RequestError(f"the prompt is {reprlib.repr(prompt)}, wanted a text or a list of token ids") from None

    def known(self, tokens: list[int]) -> list[int]:
        """The tokens, all of which the model has an embedding for."""
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise RequestError(f"the prompt has token {token}, the vocabulary has 0..{self.vocab_size - 1}")
        return tokens

    def check(self, request: Request) -> None:
        """Sets the request's limits. Raises RequestError for one that can never be served."""
        params, length = request.params, len(request.prompt_token_ids)
        if length == 0:
            raise RequestError(_EMPTY)
        room = self.context_length - length
        if room < 1:
            raise RequestError(
                f"the prompt has {length} tokens and leaves no room for output in the model's context of "
                f"{self.context_length}: shorten it"
            )
        pages = -(-length // self.pool.page_size)
        if pages > self.pool.num_pages:
            raise RequestError(
                f"the prompt needs {pages} pages of {self.pool.page_size} tokens, the page pool has "
                f"{self.pool.num_pages}: give the engine more pages or shorten the prompt"
            )
        params.check_vocabulary(self.vocab_size)
        if self.tokenizer is None and (params.stop or params.bad_words):
            raise RequestError(
                "the artifact has no tokenizer: use stop_token_ids and banned_token_ids instead of strings"
            )
        if params.stop and not params.detokenize:
            raise RequestError("stop strings need the text: leave detokenize on, or use stop_token_ids")
        request.max_new_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        stops = frozenset(params.stop_token_ids or ())
        request.end_tokens = stops if params.ignore_eos else stops | self.eos_token_ids
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]

    def seed_of(self, request: Request, arrival: int) -> int:
        """The request's seed, or the one that its place among the arrivals gives it."""
        if request.params.seed is not None:
            return request.params.seed
        words = _native.philox(self._seed & ((1 << 64) - 1), [arrival & 0xFFFFFFFF, arrival >> 32, 0, 1])
        return words[0] << 32 | words[1]

    def first(self, request: Request, arrival: int, seed: int) -> Completion:
        """Output 0 of a request, which reads the prompt."""
        params, prompt = request.params, request.prompt_token_ids
        bad = []
        if params.bad_words and self.tokenizer is not None:
            bad = [tokens for word in params.bad_words for tokens in self.tokenizer.sequences_of(word)]
        spec = params.native(seed=seed, end_tokens=sorted(request.end_tokens), bad_sequences=bad)
        salt = params.cache_salt
        sequence = scheduler.Sequence(
            key=(arrival, 0),
            tokens=list(prompt),
            num_prompt=len(prompt),
            every_row=0 if params.prompt_logprobs is None else len(prompt),
            cache_salt=0 if salt is None else int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little"),
        )
        detokenizer = None
        if self.tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(
                self.tokenizer,
                prompt,
                stop=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
            )
        sampler = _native.Sampler(spec, np.array(prompt, dtype=np.int32))
        logprobs: list[Logprobs] | None = None if params.logprobs is None else []
        completion = Completion(0, sequence, sampler, detokenizer, logprobs, seed)
        sequence.owner = (request, completion)
        request.completions.append(completion)
        return completion


def sibling(request: Request, first: Completion, index: int) -> Completion:
    """Another output of a request whose output 0 has made no token yet; it holds no pages."""
    parent = first.sequence
    sequence = scheduler.Sequence(
        key=(parent.key[0], index),
        tokens=list(parent.tokens),
        num_prompt=parent.num_prompt,
        cache_salt=parent.cache_salt,
    )
    detokenizer = None if first.detokenizer is None else first.detokenizer.fork()
    logprobs: list[Logprobs] | None = None if first.logprobs is None else []
    child = Completion(index, sequence, first.sampler.fork(index), detokenizer, logprobs, first.seed)
    sequence.owner = (request, child)
    request.completions.append(child)
    return child
