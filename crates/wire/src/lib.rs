//! Google's shapes: generated messages, JSON mapping, field masks, path templates, status details.
