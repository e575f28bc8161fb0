"""`AsyncLLM`: the engine in a thread of its own, requests from any number of asyncio tasks."""

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from echoc.errors import DeviceError, EchoError
from echoc.runtime.chat import Message
from echoc.runtime.llm import LLM, PromptLike, plain_prompt, with_output
from echoc.runtime.outputs import Increment, RequestOutput
from echoc.runtime.request import Request
from echoc.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from echoc.runtime.journal_records import Entry

T = TypeVar("T")
Listener = Callable[[Increment], None]


class AsyncLLM:
    """The asynchronous twin of `LLM`, with the same options.

    `generate` and `stream` are asynchronous iterators; leaving one early, or cancelling its task, cancels the request.
    Requests that arrive while others run join the next step. `close` ends what is running; a journal keeps it.
    """

    def __init__(self, artifact: Any, **options: Any) -> None:
        self.llm = LLM(artifact, **options)
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="echoc-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside a step must not outlive the interpreter

    def default_sampling_params(self, **changes: Any) -> SamplingParams:
        """The model's own generation defaults, with `changes`."""
        return self.llm.default_sampling_params(**changes)

    async def stream(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[Increment]:
        """Yields what each step adds to the request. Raises the request's error when it fails."""
        async for _, increment in self._asked(prompt, sampling_params, request_id, add_special_tokens):
            yield increment

    async def generate(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Yields the request's output so far after each of its steps; the last one is finished."""
        last: Request | None = None
        async for request, _ in self._asked(prompt, sampling_params, request_id, add_special_tokens):
            last = request
            if not request.finished:
                yield request.output()
        if last is not None:
            yield last.output()

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **template_options: Any,
    ) -> AsyncIterator[Increment]:
        """Streams the answer to a conversation, through the model's chat template."""
        prompt = self.llm.model.render_chat(messages, **template_options)
        async for increment in self.stream(prompt, sampling_params, request_id, add_special_tokens=False):
            yield increment

    async def unfinished(self) -> "list[Entry]":
        """See `LLM.unfinished`."""
        return await self._ask(self.llm.unfinished)

    async def resume(self, request_id: str) -> AsyncIterator[Increment]:
        """See `LLM.resume`."""
        async for _, increment in self._resumed(request_id):
            yield increment

    async def recover(self) -> list[RequestOutput]:
        """See `LLM.recover`; other requests may come meanwhile."""

        async def one(entry: "Entry") -> RequestOutput:
            output = RequestOutput(entry.request_id, entry.prompt, entry.prompt_token_ids, [])
            try:
                async for request, _ in self._resumed(entry.request_id):
                    output = request.output()
            except EchoError as error:
                output.error = error
            return output

        return list(await asyncio.gather(*(one(entry) for entry in await self.unfinished())))

    async def abort(self, request_id: str) -> None:
        """Ends a request where it is; its iterator ends with reason "abort"."""
        self._order(lambda: self.llm.engine.abort(request_id))

    def close(self) -> None:
        """Cancels what is running and ends the engine's thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        atexit.unregister(self.close)

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    def _asked(
        self, prompt: PromptLike, params: SamplingParams | None, request_id: str | None, add_special_tokens: bool
    ) -> AsyncIterator[tuple[Request, Increment]]:
        chosen = self.llm.default_sampling_params() if params is None else params
        return self._follow(
            lambda listen: self.llm.engine.add(
                plain_prompt(prompt),
                chosen,
                request_id=request_id,
                listener=listen,
                add_special_tokens=add_special_tokens,
            )
        )

    def _resumed(self, request_id: str) -> AsyncIterator[tuple[Request, Increment]]:
        def begin(listen: Listener) -> Request:
            journal = self.llm.journal
            return self.llm.engine.resume(journal.entry(journal.number_of(request_id)), listener=listen)

        return self._follow(begin)

    async def _follow(self, begin: Callable[[Listener], Request]) -> AsyncIterator[tuple[Request, Increment]]:
        """What comes of the request that `begin` puts into the engine, in the engine's thread."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Increment] = asyncio.Queue()
        begun: list[Request] = []

        def add() -> Request:
            begun.append(begin(lambda increment: _post(loop, queue.put_nowait, increment)))
            return begun[0]

        def leave() -> None:
            for request in begun:
                if not request.finished:
                    self.llm.engine.abort(request.request_id)
                self.llm.deliver([request])

        try:
            request = await self._ask(add)
            ended = 0
            while ended < request.params.n:
                increment = await queue.get()
                if increment.error is not None:
                    raise with_output(increment.error, request)
                ended += increment.finish_reason is not None
                yield request, increment
                if increment.finish_reason == "abort" and queue.empty():
                    return
        finally:
            self._order(leave)

    async def _ask(self, action: Callable[[], T]) -> T:
        """The action's result, from the engine's thread."""
        if self._closed:
            raise DeviceError("the engine is closed: make a new AsyncLLM")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def act() -> None:
            try:
                result = action()
            except Exception as error:
                _post(loop, _set_exception, answer, error)
            else:
                _post(loop, _set_result, answer, result)

        self._order(act)
        return await answer

    def _order(self, action: Callable[[], None]) -> None:
        self._orders.append(action)
        self._wake.set()

    def _serve(self) -> None:
        engine = self.llm.engine
        while not self._closed:
            while self._orders:
                self._orders.popleft()()
            if engine.has_work:
                engine.step()
            else:
                self._wake.wait()
                self._wake.clear()
        while self._orders:  # such as that a request was handed over
            self._orders.popleft()()
        self.llm.close()


def _post(loop: asyncio.AbstractEventLoop, action: Callable[..., Any], *arguments: Any) -> None:
    """Calls `action` in the loop; a loop that has ended has nobody left to tell."""
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(action, *arguments)
        except RuntimeError as error:
            if not loop.is_closed():
                raise error


def _set_result(future: "asyncio.Future[T]", result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error if isinstance(error, EchoError) else EchoError(str(error)))
