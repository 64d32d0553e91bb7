//! Policies of services: get, set, test. Shared by v1 and v2.
