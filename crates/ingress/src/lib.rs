//! The data path: host lookup, caller check, queue, instance choice, forwarding, request log.

pub mod seam;
