//! The loops: read intent and observation, decide, act through the runtime, write status.

pub mod seam;
