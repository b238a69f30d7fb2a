"""The layers of an audit as work: which findings each layer needs, and how each is made."""

from __future__ import annotations

from harness.audit.probe.ledger_pairs import LedgerPair
from harness.ledger.record import canonical_hash


def ids_of(pair: LedgerPair) -> str:
    """Of both outputs: a record's key is that of its settings, so that two ledgers may hold one key with other ids."""
    return canonical_hash([pair.vanilla["token_ids"], pair.record["token_ids"]])[:16]
