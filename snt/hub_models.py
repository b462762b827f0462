"""Model snapshots from the Hugging Face Hub: ask it with a deadline, download, read its cache.

huggingface_hub sends its first requests without a timeout, and a timeout per read does not bound
a server that drips; so one question with a deadline comes before every download.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from snt.errors import RequestError, RunFailure, SntError, UnknownNameError, unknown_name

T = TypeVar("T")

# Weights and what stands beside them in the repository's root, never a pickle.
ALLOWED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "tokenizer*", "*.tiktoken"]
# Folders hold other formats; consolidated files hold Mistral's weights a second time.
IGNORED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.py"]


class HubUnreachable(RunFailure):
    """The Hub did not answer, or not as a Hub does."""

    def __init__(self, reason: str, what: str = "model") -> None:
        """Keep `reason` apart from the remedy, for callers who take another way."""
        others = (
            "give a local directory, or use --offline with a model that is already in the cache"
            if what == "model"
            else "and try again"
        )
        super().__init__(
            f"{reason}; check the network, HF_ENDPOINT and the proxy settings, {others}"
        )
        self.reason = reason


def endpoint() -> str:
    """The Hub's address: `$HF_ENDPOINT` as it is now, else the public one."""
    # Read here, because huggingface_hub reads it once, when it is imported.
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def forbidden() -> bool:
    """Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` says to leave the Hub alone."""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked.upper() in {"1", "ON", "YES", "TRUE"}


def ask(hub_id: str, revision: str | None, *, seconds: float, known: Iterable[str] = ()) -> None:
    """Make sure, within `seconds`, that the Hub serves `hub_id` to this user as safetensors.

    Raises HubUnreachable, UnknownNameError (with the nearest of `known`), and RequestError when
    the repository is gated or holds no safetensors.
    """
    until = time.monotonic() + seconds
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())

    def question() -> list[str]:
        info = api.model_info(hub_id, revision=revision, timeout=seconds)
        # The next request that a download makes, and the first that tells of a gate.
        next(iter(api.list_repo_tree(hub_id, revision=info.sha, recursive=True)), None)
        names = [file.rfilename for file in info.siblings or []]
        weights = [name for name in names if name.endswith(".safetensors")]
        if weights:
            _first_byte(hub_id, weights[0], info.sha, seconds)
        return names

    try:
        # A slow import is no fault of the Hub's: it is left a second in any case.
        files = within(max(until - time.monotonic(), 1.0), question)
    except Exception as error:  # HTTP, TLS, proxy and JSON faults share no base
        raise explained(error, hub_id, revision, known) from error
    if files and not any(name.endswith(".safetensors") for name in files):
        held = sorted({Path(name).suffix for name in files} & {".bin", ".pth", ".pt", ".gguf"})
        raise RequestError(
            f"{hub_id} holds no .safetensors weights{f', only {held[0]}' if held else ''}; "
            "pickles run code when loaded and are refused. Look for a revision that has them "
            f"({hub_id}@refs/pr/N), or convert the model and give its directory"
        )


def download(hub_id: str, revision: str | None, *, bars: bool, known: Iterable[str] = ()) -> Path:
    """The snapshot's directory in the Hugging Face cache, complete. Raises as `ask` does."""
    try:
        hidden = {} if bars else {"tqdm_class": hidden_bar()}
        return within(None, lambda: _snapshot(hub_id, revision, **hidden))
    except Exception as error:  # as above, and hf-xet's
        raise explained(error, hub_id, revision, known) from error


def cached(hub_id: str, revision: str | None) -> Path | None:
    """The snapshot that an earlier download left, or None; asks nobody."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(hub_id, revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _snapshot(hub_id: str, revision: str | None, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id,
            revision=revision,
            endpoint=endpoint(),
            allow_patterns=ALLOWED,
            ignore_patterns=IGNORED,
            **options,
        )
    )


def _first_byte(hub_id: str, name: str, commit: str | None, seconds: float) -> None:
    """Read the start of a weights file: it comes from another server, which may be blocked."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub import utils as hub_utils

    utils: Any = hub_utils  # public names, but not marked as re-exported
    url = hf_hub_url(hub_id, name, revision=commit, endpoint=endpoint())
    headers = {**utils.build_hf_headers(), "Range": "bytes=0-0"}
    with get_session().stream("GET", url, headers=headers, timeout=seconds) as reply:
        if reply.status_code >= 400:
            reply.read()
            utils.hf_raise_for_status(reply)
        next(reply.iter_raw(), b"")


def hidden_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    parent: Any = tqdm

    class Hidden(parent):  # type: ignore[misc]  # huggingface_hub's bar has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Hidden


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """The result of `call`, or TimeoutError after `seconds`, whatever `call` is stuck in.

    Without a time it is waited for, and Ctrl-C ends the waiting at once.

    A name lookup cannot be cancelled: the thread is left behind, and as a daemon it keeps no
    process alive.
    """
    outcomes: queue.SimpleQueue[tuple[T, None] | tuple[None, Exception]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((call(), None))
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            outcomes.put((None, error))

    threading.Thread(target=run, name="snt-ask-the-hub", daemon=True).start()
    try:
        result, error = outcomes.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.1f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # one of the two is set


def explained(
    error: BaseException,
    hub_id: str,
    revision: str | None,
    known: Iterable[str],
    what: str = "model",
) -> SntError:
    """What `error` of huggingface_hub means for the user who asked for `hub_id`."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return RequestError(
            f"{hub_id} is gated: accept its licence at {endpoint()}/{hub_id} with your account, "
            "then run `hf auth login`, or set HF_TOKEN, and try again"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return RequestError(
            f"{hub_id} has no revision {revision!r}; give a branch, a tag or a full commit hash "
            f"that {endpoint()}/{hub_id} lists, or leave it out"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.RepositoryNotFoundError) or status == 404:
        if what != "model":
            return UnknownNameError(
                f"{endpoint()} has no {what} {hub_id}, or it is private: then run `hf auth login` "
                "with an account that may read it"
            )
        return unknown_name(
            "model",
            hub_id,
            known,
            f"{endpoint()} has no such repository, or it is private: "
            "then run `hf auth login` with an account that may read it.",
        )
    if status in (401, 403):
        return RequestError(
            f"{endpoint()} refuses {hub_id} (HTTP {status}): the token is not valid for it; "
            "run `hf auth login`, or unset HF_TOKEN"
        )
    if what != "model" and status is not None and 400 <= status < 500:
        reason = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
        return RequestError(f"{endpoint()} refuses that for {hub_id} (HTTP {status}): {reason}")
    # huggingface_hub wraps what happened on the way in "not found in the cache".
    if isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ is not None:
        return explained(error.__cause__, hub_id, revision, known, what)
    said = f"HTTP {status}" if status else (str(error).strip().split("\n")[0] or "no reason given")
    verb = "had from" if what == "model" else "reached on"
    return HubUnreachable(
        f"{hub_id} could not be {verb} the Hub at {endpoint()} ({type(error).__name__}: {said})",
        what,
    )
