//! The data path in one process: real loopback sockets, scripted apps.
