//! Resources as the Admin API and the stores know them.
