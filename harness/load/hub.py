"""Weights from the hub: at a pinned commit, with the licence page where one must agree first."""

from __future__ import annotations

from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.load.layout import lacking
from harness.load.sources import HubRepo


def licence_page(repo: HubRepo) -> str:
    """Where the licence can be read and accepted."""
    return f"https://huggingface.co/{repo.hub}"


def has_token() -> bool:
    """Whether the hub's client has a token to show; it need not have the right to read a given repository."""
    from huggingface_hub import get_token

    return get_token() is not None


def from_hub(repo: HubRepo, what: str, *, tokenizer_only: bool = False) -> Path:
    """A repository's folder in the hub client's cache, downloaded where it is not whole. `what` is named in errors.

    Safetensors are taken where there are any. Pickles are taken only where there are none: Vicuna's repositories have no others.
    tokenizer_only: no weights are fetched.

    Raises:
        UserError: gated and no token or no licence accepted, no connection, or not whole after all.
    """

    def lacks(folder: Path) -> Path | None:
        absent, file = lacking(folder), folder / "tokenizer_config.json"
        return absent if absent is None or not tokenizer_only else None if file.is_file() else file

    folder = hub_folder(repo.hub, repo.revision)
    if lacks(folder) is None:
        return folder
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    accept = f"accept the licence at {licence_page(repo)}"
    if repo.gated and not has_token():
        raise UserError(
            f"{what} is gated ({repo.hub}) and there is no token: {accept}, then log in with `hf auth login` or set HF_TOKEN"
        )
    try:
        small = ["*.json", "*.model", "*.jinja"]
        for patterns in (small,) if tokenizer_only else ([*small, "*.safetensors"], ["*.bin", "*.pt"]):
            folder = Path(huggingface_hub.snapshot_download(repo.hub, revision=repo.revision, allow_patterns=patterns))
            if lacks(folder) is None:
                return folder
    except GatedRepoError:
        raise UserError(f"{what} is gated and the token in use may not read {repo.hub}: {accept}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"cannot fetch {repo.hub}@{repo.revision} for {what} ({first}); log in to the hub if it is gated, fetch it on "
            "a connected machine and copy the hub cache, or use --model smollm2-135m, which comes from PyPI"
        ) from None
    raise UserError(f"{what}: {repo.hub}@{repo.revision} has no {lacks(folder)}")
