//! Pure decisions: how many instances, where a request goes, which revision gets what traffic, and why.
