//! The only assembler: settings, store, control loop, server.
