//! References to secrets and encryption of secret fields at rest.
