"""An engine in torch's operations whose rows do not depend on one another: for the audit, on any device."""
