# The native extension (runtime/native). Its functions carry their signatures in their docstrings.
from typing import Any

def __getattr__(name: str) -> Any: ...
